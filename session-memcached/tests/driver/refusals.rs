//! Requests of several commands, of which the server does the first and refuses the second: what was done is
//! not denied.

use crate::{common::*, with_server};
use session_core::{
    Effect, ErrorKind, Grant, Loaded, LockingStore as _, Renewed, Replaced, SessionLock as _,
};
use session_memcached::{MemcachedConfig, MemcachedStore, Protocol};
use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
};

/// Stands between a store and its server. When it is told to, it makes of one command that follows another
/// one such as no server knows.
#[derive(Clone, Default)]
struct Spoiler(Arc<Mutex<Option<Orders>>>);

struct Orders {
    first: &'static str,
    second: &'static str,
    /// The first has passed.
    passed: bool,
}

impl Spoiler {
    async fn start(server: SocketAddr, protocol: Protocol) -> (Self, MemcachedStore) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = MemcachedConfig::server("127.0.0.1", listener.local_addr().unwrap().port());
        (config.protocol, config.pool) = (protocol, NonZeroUsize::MIN);
        let this = Self::default();
        let spoiler = this.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut requests, mut to_client) = client.into_split();
                let (mut replies, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
                tokio::spawn(async move { copy(&mut replies, &mut to_client).await });
                let spoiler = spoiler.clone();
                tokio::spawn(async move {
                    let mut request = vec![0; 1 << 14];
                    while let Ok(length @ 1..) = requests.read(&mut request).await {
                        spoiler.pass(&mut request[..length]);
                        to_server.write_all(&request[..length]).await.unwrap();
                    }
                });
            }
        });
        (this, MemcachedStore::connect(&config).await.unwrap())
    }

    fn spoil(&self, first: &'static str, second: &'static str) {
        *self.0.lock().unwrap() = Some(Orders { first, second, passed: false });
    }

    fn has_spoiled(&self) -> bool {
        self.0.lock().unwrap().is_none()
    }

    /// A request comes in one piece, and begins with a command.
    fn pass(&self, request: &mut [u8]) {
        let mut orders = self.0.lock().unwrap();
        let Some(Orders { first, second, passed }) = &mut *orders else { return };
        for at in 0..request.len() {
            let (before, command) = request.split_at_mut(at);
            if !before.is_empty() && !before.ends_with(b"\r\n") {
                continue;
            }
            if *passed && command.starts_with(second.as_bytes()) {
                command[..second.len()].fill(b'x');
                *orders = None;
                return;
            }
            *passed |= command.starts_with(first.as_bytes());
        }
    }
}

#[tokio::test]
async fn a_write_is_done_though_the_release_that_follows_is_refused() {
    let server = with_server!();
    // The lock is deleted with the write, or read: after a renewal, and always in the plain protocol.
    for (protocol, renewed, second) in
        [(Protocol::Meta, false, "md"), (Protocol::Meta, true, "mg"), (Protocol::Plain, false, "gets")]
    {
        let (spoiler, store) = Spoiler::start(server.address(), protocol).await;
        let key = new_key();
        insert(&store, &key, "one").await;
        let (grant, stored) = lock(&store, &key).await;
        if renewed {
            assert_eq!(store.renew(&grant, LEASE).await.unwrap(), Renewed::Extended);
        }
        spoiler.spoil("cas", second);
        let written = store.replace_and_release(&grant, stored.version, &put("two")).await;
        assert!(spoiler.has_spoiled());
        let Ok(Replaced::Done(version)) = written else { panic!("{second}: {written:?}") };
        let (grant, stored) = lock(&store, &key).await; // it was freed all the same
        assert_eq!((stored.version, stored.data.as_ref()), (version, &b"two"[..]));
        release(&store, &grant).await;
    }
}

#[tokio::test]
async fn a_lock_is_not_denied_when_the_look_that_follows_is_refused() {
    let server = with_server!();
    for (protocol, second) in [(Protocol::Meta, "mg"), (Protocol::Plain, "gets")] {
        // Taken, and taken again.
        for first in ["add", "cas"] {
            let (spoiler, store) = Spoiler::start(server.address(), protocol).await;
            let (key, token) = (new_key(), new_token());
            insert(&store, &key, "one").await;
            let ask = async || store.acquire_and_load(&key, token, LEASE, Duration::ZERO).await;
            if first == "cas" {
                assert!(matches!(ask().await.unwrap(), Loaded::Granted(..)));
            }
            spoiler.spoil(first, second);
            let error = ask().await.map(drop).unwrap_err();
            assert!(spoiler.has_spoiled());
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Backend, Effect::Unknown), "{error}");
            assert_held(&store, &key).await;
            release(&store, &Grant::new(key, token)).await;
        }
    }
}
