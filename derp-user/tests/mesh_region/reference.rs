//! Clients of the reference library, in the Go program `interop/region`: each tries the servers of the
//! region in an order of its own, and takes the first that answers. The model is there, too.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use crate::{
    CLIENTS, Crowd,
    peer::{Wire, random_bytes, to_hex},
    region::{MESH_KEY, Site},
    server::{AUTHORITY_FILE, Server, write_file},
};

/// The program; ended when dropped.
pub(crate) struct Reference {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reference {
    pub(crate) fn start(program: &Path, sites: &[Site], servers: &[Option<Server>]) -> Self {
        let node = |(site, server): (&Site, &Option<Server>)| {
            let server = server.as_ref().expect("all run at first");
            serde_json::json!({
                "Address": site.place.address(),
                "Port": site.place.tls_address().port(),
                "Key": to_hex(Wire::connect(server).announced_key().as_bytes()),
            })
        };
        let nodes: Vec<_> = sites.iter().zip(servers).map(node).collect();
        let config = serde_json::json!({
            "Clients": CLIENTS,
            "MeshKey": MESH_KEY,
            "Seed": u64::from_ne_bytes(random_bytes::<8>()),
            "Nodes": nodes,
        });
        let directory = sites[0].directory.path();
        let mut process = Command::new(program)
            .arg(format!("-config={}", write_file(directory, "region.json", &config.to_string())))
            .env("SSL_CERT_FILE", directory.join(AUTHORITY_FILE))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was just built");
        let commands = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, commands, answers }
    }

    /// Has something done, and returns what comes of it.
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("the program runs");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers in text");
        let result = answer.trim_end().strip_prefix("ok");
        result.unwrap_or_else(|| panic!("{command}: {answer:?}")).trim_start().to_owned()
    }
}

impl Crowd for Reference {
    const FAILS_OVER: bool = true;

    fn place(&mut self, client: usize, node: usize) {
        self.ask(&format!("home {client} {node}"));
    }

    fn leave(&mut self, client: usize) -> usize {
        self.ask(&format!("leave {client}")).parse().expect("how many were told")
    }

    fn settle(&mut self, what: &str, up: &[usize]) -> Duration {
        let up: Vec<_> = up.iter().map(ToString::to_string).collect();
        println!("settle: {what}");
        let milliseconds = self.ask(&format!("settle {}", up.join(" ")));
        Duration::from_millis(milliseconds.parse().expect("how long it took"))
    }

    fn packets(&mut self) -> u64 {
        self.ask("packets").parse().expect("a number")
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
