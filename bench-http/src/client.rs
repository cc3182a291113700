//! A keep-alive connection, without anything between it and the socket.

use crate::Result;
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    head: String,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) cookie: Option<String>,
    pub(crate) body: String,
}

impl Connection {
    pub(crate) fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), head: String::new() })
    }

    pub(crate) fn get(&mut self, path: &str, cookie: &str) -> Result<Reply> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\ncookie: {cookie}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut set, mut length) = (0, None, 0);
        loop {
            self.head.clear();
            self.stream.read_line(&mut self.head)?;
            let line = self.head.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest.split(' ').next().unwrap_or_default().parse()?;
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse()?;
            } else if let Some(rest) = line.strip_prefix("set-cookie: ") {
                set = rest.split(';').next().map(str::to_owned);
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Reply { status, cookie: set, body: String::from_utf8(body)? })
    }

    /// A new session; its cookie.
    pub(crate) fn start(&mut self, app: &str) -> Result<String> {
        self.get(&format!("{app}/start"), "")?.cookie.ok_or_else(|| "no cookie".into())
    }
}
