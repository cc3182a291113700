//! The examples do what their pages say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, too, fail by panicking"
)]

use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

struct App {
    address: String,
    _process: Child,
}

impl App {
    async fn start(program: &str, url: &str) -> Self {
        let mut process = Command::new(program)
            .arg(url)
            .env("PORT", "0")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let line = BufReader::new(process.stdout.take().unwrap()).lines().next_line().await.unwrap().unwrap();
        Self { address: line.strip_prefix("open http://").unwrap().to_owned(), _process: process }
    }
}

/// A browser of a few lines: one connection per request, one cookie.
#[derive(Clone, Default)]
struct Browser {
    cookie: String,
}

struct Page {
    status: u16,
    head: String,
    body: String,
}

impl Browser {
    async fn send(&self, app: &App, method: &str, path: &str, form: &str) -> Page {
        let mut stream = TcpStream::connect(&app.address).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncookie: {}\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            self.cookie,
            form.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Page { status, head: head.to_owned(), body: body.to_owned() }
    }

    async fn go(&mut self, app: &App, method: &str, path: &str, form: &str) -> Page {
        let page = self.send(app, method, path, form).await;
        if let Some((_, set)) = page.head.split_once("set-cookie: ") {
            self.cookie = set.split(';').next().unwrap().to_owned();
        }
        page
    }
}

impl Page {
    fn token(&self) -> String {
        self.body.split_once("name=csrf value=").unwrap().1.chars().take(43).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_shops_keep_everything_and_the_control_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let file = format!("file://{}", directory.path().join("shop").display());
    for url in ["memory:", &file] {
        let app = App::start(env!("CARGO_BIN_EXE_cart"), url).await;
        let page = Browser::default().send(&app, "GET", "/", "").await;
        assert!(page.body.contains(&format!("<code>{}</code>", url.split(':').next().unwrap())));
        for shop in ["blind", "write", "exclusive"] {
            let mut browser = Browser::default();
            browser.go(&app, "DELETE", &format!("/{shop}"), "").await;
            let requests = (0..24).map(|item| {
                let (browser, path) = (browser.clone(), format!("/{shop}/{item}?ms=10"));
                let app = &app;
                async move { browser.send(app, "POST", &path, "").await.status }
            });
            for status in futures_util::future::join_all(requests).await {
                assert_eq!(status, 200, "{shop} on {url}");
            }
            let page = browser.send(&app, "GET", &format!("/{shop}"), "").await;
            let mut cart: Vec<u32> = serde_json::from_str(&page.body).unwrap();
            cart.sort_unstable();
            match shop {
                "blind" => assert!(cart.len() < 24, "the control lost nothing: this proved nothing"),
                _ => assert_eq!(cart, (0..24).collect::<Vec<_>>(), "{shop} on {url}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_from_beginning_to_end() {
    let app = App::start(env!("CARGO_BIN_EXE_login"), "memory:").await;
    let mut browser = Browser::default();
    let page = browser.go(&app, "GET", "/", "").await;
    let planted = browser.clone();

    let forged = browser.go(&app, "POST", "/login", "csrf=x&user=eve&password=demo").await;
    assert_eq!(forged.status, 403);
    let wrong = format!("csrf={}&user=eve&password=guess", page.token());
    assert_eq!(browser.go(&app, "POST", "/login", &wrong).await.status, 303);
    assert!(browser.go(&app, "GET", "/", "").await.body.contains("not the password"));
    assert!(!browser.go(&app, "GET", "/", "").await.body.contains("not the password")); // it was shown once

    let right = format!("csrf={}&user=%3Ceve%3E&password=demo", page.token());
    assert_eq!(browser.go(&app, "POST", "/login", &right).await.status, 303);
    assert_ne!(browser.cookie, planted.cookie);
    let home = browser.go(&app, "GET", "/", "").await;
    assert!(home.body.contains("<h1>Hello, &lt;eve&gt;</h1>"), "{}", home.body);
    assert!(home.body.contains("Sessions of yours: 1"), "{}", home.body);
    assert_ne!(home.token(), page.token());
    assert!(!planted.send(&app, "GET", "/", "").await.body.contains("Hello"));

    let mut phone = Browser::default();
    let page = phone.go(&app, "GET", "/", "").await;
    phone.go(&app, "POST", "/login", &format!("csrf={}&user=%3Ceve%3E&password=demo", page.token())).await;
    assert!(phone.go(&app, "GET", "/", "").await.body.contains("Sessions of yours: 2"));

    let out = browser.go(&app, "POST", "/logout-everywhere", &format!("csrf={}", home.token())).await;
    assert_eq!(out.status, 303);
    assert!(out.head.contains("location: /?bye"), "{}", out.head);
    assert!(browser.send(&app, "GET", "/?bye", "").await.body.contains("You are logged out"));
    let stale = phone.send(&app, "POST", "/logout", &format!("csrf={}", home.token())).await;
    assert_eq!(stale.status, 403);
    assert!(stale.body.contains("<a href=/>"), "{}", stale.body);
    for browser in [&browser, &phone] {
        assert!(!browser.send(&app, "GET", "/", "").await.body.contains("Hello"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_in_parallel_gives_no_more_tries() {
    let app = App::start(env!("CARGO_BIN_EXE_login"), "memory:").await;
    let mut browser = Browser::default();
    let page = browser.go(&app, "GET", "/", "").await;
    let guess = format!("csrf={}&user=eve&password=guess", page.token());
    let mut told = 0; // that the password is wrong
    for _ in 0..10 {
        let guesses = (0..8).map(|_| browser.send(&app, "POST", "/login", &guess));
        for page in futures_util::future::join_all(guesses).await {
            assert!([303, 409, 429].contains(&page.status), "{}", page.head);
            told += u32::from(page.status == 303);
        }
    }
    assert_eq!(told, 5);
}
