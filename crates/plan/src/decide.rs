//! What must happen to a packet: the executable specification of Services.
