//! Rules of the framing, on frames that we made and on header blocks that zlib made.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

/// Two header blocks of one connection as zlib compresses them with the dictionary.
const BLOCKS: [&str; 2] = [
    "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff",
    "02c960680695438944e9c5c81800000000ffff",
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn headers(all: &[(&str, &str)]) -> Headers {
    all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn decode(mut decoder: Decoder, bytes: &[u8], step: usize) -> Vec<Frame> {
    let mut all = Vec::new();
    for part in bytes.chunks(step) {
        decoder.feed(part);
        while let Some(frame) = decoder.next().unwrap() {
            all.push(frame);
        }
    }
    assert!(decoder.buffer.is_empty());
    all
}

#[test]
fn header_blocks_of_zlib_are_one_stream() {
    let mut inflate = Inflate::new();
    let first = inflate.headers(&bytes(BLOCKS[0])).unwrap();
    assert_eq!(first, headers(&[("streamtype", "error"), ("port", "8080"), ("requestid", "0")]));
    let second = inflate.headers(&bytes(BLOCKS[1])).unwrap();
    assert_eq!(second["streamtype"], "data");
    assert_eq!(second["status"], "200 OK");
}

#[test]
fn another_dictionary_is_refused() {
    assert!(Inflate::new().headers(&[0x78, 0xbb, 1, 2, 3, 4, 0]).is_err());
    assert!(Inflate::new().headers(&[]).is_err());
}

#[test]
fn inflation_is_bounded() {
    let mut compress = flate2::Compress::new(flate2::Compression::best(), true);
    let mut bomb = Vec::with_capacity(1 << 16);
    compress.compress_vec(&vec![0; 1 << 24], &mut bomb, flate2::FlushCompress::Sync).unwrap();
    assert_eq!(Inflate::new().headers(&bomb), Err(SpdyError::Headers("it is too long")));
}

#[test]
fn frames_beyond_the_bounds_are_refused() {
    for head in [[0x80, 3, 0, 1, 0, 0xff, 0, 0], [0, 0, 0, 1, 0, 0xff, 0, 0]] {
        let mut decoder = Decoder::new();
        decoder.feed(&head);
        assert_eq!(decoder.next(), Err(SpdyError::TooLong(0xff_0000)));
    }
    let mut decoder = Decoder::new();
    decoder.feed(b"\x80\x02\0\x01\0\0\0\0");
    assert_eq!(decoder.next(), Err(SpdyError::Version));
}

fn any_headers() -> impl Strategy<Value = Headers> {
    proptest::collection::btree_map("[a-z-]{1,12}", "[ -~]{0,40}", 0..6)
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let id = 1..ID_MASK;
    let data = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        (id.clone(), any::<bool>(), any_headers())
            .prop_map(|(id, fin, headers)| Frame::SynStream { id, fin, headers }),
        (id.clone(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::SynReply {
            id,
            fin,
            headers
        }),
        (id.clone(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::Headers {
            id,
            fin,
            headers
        }),
        (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
        proptest::collection::vec((0..0x00ff_ffff_u32, any::<u32>()), 0..4)
            .prop_map(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (id.clone(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (id.clone(), id.clone()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
        (id, any::<bool>(), data).prop_map(|(id, fin, data)| Frame::Data {
            id,
            fin,
            data: data.into()
        }),
    ]
}

proptest! {
    #[test]
    fn frames_come_back_however_they_are_cut(
        frames in proptest::collection::vec(any_frame(), 0..12),
        step in 1..64_usize,
    ) {
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        frames.iter().for_each(|frame| encoder.encode(frame, &mut out));
        prop_assert_eq!(decode(Decoder::new(), &out, step), frames);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        while let Ok(Some(_)) = decoder.next() {}
    }

    #[test]
    fn no_control_frame_panics(
        kind in 0..12_u16,
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut out = BytesMut::new();
        let mut zlib = numbers(&[1, 0]);
        zlib.extend_from_slice(&[0, 0, 0x78, 0xbb]);
        zlib.extend_from_slice(&dictionary::ID.to_be_bytes());
        zlib.extend_from_slice(&body);
        control(&mut out, kind, false, &body);
        control(&mut out, 1, false, &zlib);
        let mut decoder = Decoder::new();
        decoder.feed(&out);
        while let Ok(Some(_)) = decoder.next() {}
    }
}
