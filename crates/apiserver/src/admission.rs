//! PLACEHOLDER until its author replaces this file.
