//! The scripts: one atomic step each, sent by hash, and in full to a server that does not know them yet.

use redis::Cmd;
use std::sync::LazyLock;

/// One Lua script and its hash.
pub(crate) struct Script {
    code: &'static str,
    hash: String,
}

macro_rules! scripts {
    ($($name:ident = $($file:literal)+;)*) => {$(
        #[cfg_attr(not(feature = "cluster"), allow(dead_code, reason = "LOAD is for clusters"))]
        pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+)));
    )*};
}

scripts! {
    ACQUIRE = "acquire_fast" "lib" "acquire";
    COMMIT = "lib" "index" "commit";
    DELETE = "lib" "delete";
    INDEX_ADD = "index" "index_add";
    INDEX_PAGE = "index_page";
    INSERT = "index" "insert";
    LOAD = "load";
    ORPHAN = "orphan";
    RELEASE = "lib" "release";
    RENEW = "renew";
    REPLACE = "index" "replace";
    TOUCH = "index" "touch";
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }
}

/// A script with its keys, all of one slot, and its arguments.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) script: &'a Script,
    pub(crate) keys: &'a [&'a [u8]],
    pub(crate) arguments: &'a [&'a [u8]],
}

impl Call<'_> {
    pub(crate) fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", &self.script.hash)
    }

    pub(crate) fn in_full(&self) -> Cmd {
        self.command("EVAL", self.script.code)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let bytes = self.keys.iter().chain(self.arguments).map(|part| part.len()).sum::<usize>();
        let parts = 3 + self.keys.len() + self.arguments.len();
        let mut command = Cmd::with_capacity(parts, bytes + script.len() + 16);
        command.arg(name).arg(script).arg(self.keys.len());
        for part in self.keys.iter().chain(self.arguments) {
            command.arg(*part);
        }
        command
    }
}
