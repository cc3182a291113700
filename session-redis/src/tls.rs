//! Certificates, and the cryptography they are checked with.

use crate::config::{Tls, invalid};
use redis::{ClientTlsConfig, TlsCertificates};
use session_core::Result;
use std::path::Path;

/// Reads the files. Without TLS there are none.
pub(crate) fn certificates(tls: Option<&Tls>) -> Result<TlsCertificates> {
    let Some(tls) = tls else { return Ok(TlsCertificates { client_tls: None, root_cert: None }) };
    // rustls panics without a provider. An error says that the application has chosen one: that is the one to
    // use.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client_tls = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
        (None, None) => None,
        _ => return Err(invalid("cert and key come together")),
    };
    Ok(TlsCertificates { client_tls, root_cert: tls.ca.as_deref().map(read).transpose()? })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| invalid(format!("{}", path.display())).with_source(error))
}
