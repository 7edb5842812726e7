//! What a front can tell from an error, without reading its words.

use std::io::ErrorKind;
use std::path::PathBuf;

use navicache_engine::models::Error as Models;
use navicache_engine::{Error, Lack, weights};

#[test]
fn what_ran_out_is_known_without_reading_messages() {
    let io = |kind: ErrorKind| {
        let source = || std::io::Error::from(kind);
        let path = || PathBuf::from("No space left");
        [
            Error::Io { path: path(), source: source() },
            navicache_media::Error::Io { path: path(), source: source() }.into(),
            weights::Error::Io { path: path(), source: source() }.into(),
        ]
        .map(|error| error.lacks())
    };
    assert_eq!(io(ErrorKind::StorageFull), [Some(Lack::Disk); 3]);
    assert_eq!(io(ErrorKind::QuotaExceeded), [Some(Lack::Disk); 3]);
    assert_eq!(io(ErrorKind::NotFound), [None; 3]);

    let of_driver = || candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".to_string());
    let all =
        [Error::Tensor(of_driver()), Models::Tensor(of_driver()).into(), weights::Error::Tensor(of_driver()).into()];
    assert_eq!(all.map(|error| error.lacks()), [Some(Lack::Memory); 3]);

    let of_user = Error::File { path: "out of memory".into(), reason: "No space left".to_string() };
    assert_eq!(of_user.lacks(), None, "words of a user's are no reason");
}
