//! TLS, with certificates made for the test: the server's is checked, and ours is asked for.

use crate::common::*;
use session_conformance::servers::{find_program, free_port};
use session_core::{ErrorKind, SessionStore as _};
use session_redis::RedisStore;
use std::{path::Path, process::Command};

/// A certificate authority, and a certificate for 127.0.0.1 that it signed, for both sides.
fn certificates(directory: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    for (name, subject) in [("ca", "/CN=a test's own authority"), ("other", "/CN=another authority")] {
        let (certificate, private) = (format!("{name}.crt"), format!("{name}.key"));
        let mut command =
            vec!["req", "-x509", "-days", "2", "-subj", subject, "-out", &certificate, "-keyout", &private];
        command.extend(key);
        openssl(&command);
    }
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let mut command = vec!["req", "-subj", "/CN=localhost", "-out", "both.csr", "-keyout", "both.key"];
    command.extend(key);
    openssl(&command);
    openssl(&[
        "x509",
        "-req",
        "-in",
        "both.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        "both.crt",
    ]);
}

#[tokio::test]
async fn the_server_is_checked_and_so_are_we() {
    if find_program("openssl", &[]).is_none() {
        let required = std::env::var("SESSION_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "redis"), "required, but openssl is not installed");
        eprintln!("NOT TESTED: openssl is not installed (apt-get install openssl)");
        return;
    }
    let directory = std::env::temp_dir().join(format!("session-redis-tls-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    certificates(&directory);
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.crt"), file("both.crt"), file("both.key"));
    let port = free_port().unwrap().to_string();
    let arguments =
        ["--tls-port", &port, "--tls-ca-cert-file", &ca, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let Some(_server) = server(&arguments).await else { return };
    let url = |options: &str| format!("rediss://127.0.0.1:{port}?connect_timeout=500ms&{options}");
    let good = url(&format!("ca={ca}&cert={cert}&key={key}"));
    let store = RedisStore::connect_url(&good).await.unwrap();
    let session = crate::common::key();
    insert(&store, &session, "secret").await;
    assert_eq!(store.load(&session).await.unwrap().unwrap().data, "secret");
    let (grant, _) = granted(&store, &session, LONG).await;
    assert_eq!(
        session_core::SessionLock::release(&store, &grant).await.unwrap(),
        session_core::Released::Freed
    );
    // Another authority, the system's alone, and no certificate of ours.
    for options in
        [format!("ca={}&cert={cert}&key={key}", file("other.crt")), String::new(), format!("ca={ca}")]
    {
        let error = RedisStore::connect_url(&url(&options)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{options}: {error:?}");
    }
    for (options, word) in [(format!("cert={cert}"), "together"), ("ca=/nowhere".to_owned(), "/nowhere")] {
        let error = RedisStore::connect_url(&url(&options)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
