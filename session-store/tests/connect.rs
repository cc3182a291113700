//! What `connect` says to URLs that it cannot use.

#![allow(clippy::expect_used, reason = "a test says what it expected")]

use session_store::{ErrorKind, connect};

async fn refused(url: &str) -> (ErrorKind, String) {
    let error = connect(url).await.expect_err(url);
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn memory_takes_no_options() {
    assert!(connect("memory:").await.is_ok());
    assert!(connect("memory://").await.is_ok());
    assert_eq!(refused("memory:?size=1").await.0, ErrorKind::Invalid);
}

#[tokio::test]
async fn an_unknown_scheme_names_the_known_ones() {
    for url in ["", "sessions", "ftp://host", "://"] {
        let (kind, text) = refused(url).await;
        assert_eq!(kind, ErrorKind::Invalid);
        assert!(text.contains("`memory:`"), "{text}");
    }
}

#[cfg(not(feature = "file"))]
#[tokio::test]
async fn a_backend_that_is_not_compiled_in_names_its_feature() {
    let (kind, text) = refused("file:///tmp/sessions").await;
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("feature `file`"), "{text}");
}
