//! Real clients work through the broker, with names that the laboratory's resolver maps and servers of
//! its own: git, curl, pip, npm, cargo, apt, psql, gRPC and websockets. INV-8; part 3 of the contract.
//!
//! No client is told of the broker: there is no variable, no certificate and no port of ours.

use e2e::exec::Outcome;
use e2e::lab::Lab;
use e2e::lab::fixtures::clients_policy;
use e2e::{Level, Need, require};

/// Prints `NAME: WORDS` for each client; what a client says when it fails comes along.
const START: &str = r#"
cd /workspace
try() { name=$1; shift; if out=$("$@" 2>&1); then echo "$name: ok $out" | tr '\n' ' '; else
    echo "$name: failed $out" | tail -c 1500 | tr '\n' ' '; fi; echo; }
"#;

/// Runs a script in a jail of every level; each of `names` must have said `ok` and its word.
fn clients(lab: &Lab, script: &str, names: &[(&str, &str)]) {
    let policy = clients_policy();
    for level in Level::here() {
        lab.forget();
        let run = lab.exec(level, &policy).bash(&format!("{START}{script}"));
        let mut wrong = Vec::new();
        for (name, word) in names {
            let said = said(&run, name);
            if !said.starts_with("ok") || !said.contains(word) {
                wrong.push(format!("{level:?} {name}: {said}"));
            }
        }
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), run.stderr);
    }
}

fn said(run: &Outcome, name: &str) -> String {
    let start = format!("{name}: ");
    run.stdout.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("nothing").to_owned()
}

#[test]
fn git_works_over_https_and_over_ssh() {
    require!(Need::Tool("git"), Need::Tool("ssh"), Need::Tool("dropbear"));
    let lab = Lab::of_clients();
    let home = lab.directory().join("home").display().to_string();
    let (key, known) = (lab.text_of("ssh/client"), lab.text_of("ssh/known_hosts"));
    let script = format!(
        r#"
export GIT_TERMINAL_PROMPT=0
git config --global user.name lab; git config --global user.email lab@example.test
work() {{ git clone -q "$1" "$2" && cat "$2/word" && cd "$2" && echo "$2" >>more && git add more &&
    git commit -q -m more && git push -q origin HEAD:refs/heads/$2 && git ls-remote origin; }}
try https work https://git.example.test/git/lab.git https-$RANDOM
mkdir -p ~/.ssh; chmod 700 ~/.ssh
cat >~/.ssh/id <<'END'
{key}END
cat >~/.ssh/known <<'END'
{known}END
chmod 600 ~/.ssh/id
export GIT_SSH_COMMAND="ssh -i $HOME/.ssh/id -o UserKnownHostsFile=$HOME/.ssh/known -o StrictHostKeyChecking=yes -o BatchMode=yes"
try ssh work ssh://lab@ssh.example.test{home}/lab.git ssh-$RANDOM
try command ssh -i $HOME/.ssh/id -o UserKnownHostsFile=$HOME/.ssh/known -o BatchMode=yes lab@ssh.example.test echo from a shell
"#
    );
    let names =
        [("https", "refs/heads/https-"), ("ssh", "refs/heads/ssh-"), ("command", "from a shell")];
    clients(&lab, &script, &names);
    assert!(
        lab.requested().iter().any(|one| one.ends_with("git-receive-pack")),
        "pushed elsewhere"
    );
}

#[test]
fn curl_pip_and_npm_fetch_from_their_indexes() {
    require!(Need::Tool("curl"), Need::Tool("npm"), Need::Tool("pip3"));
    let lab = Lab::of_clients();
    let script = r#"
export PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1
both() { curl -fsS https://api.example.test/ok http://api.example.test/ok && curl -fsS -o big \
    "https://api.example.test/big?3000000" "http://api.example.test/big?2000000" -o big2 && wc -c big big2; }
try curl both
pipped() { /usr/bin/python3 -m pip install -q --no-cache-dir --target p -i https://pypi.example.test/simple labpkg &&
    PYTHONPATH=p /usr/bin/python3 -c 'import labpkg; print(labpkg.WORD)'; }
try pip pipped
noded() { npm install --silent --no-audit --no-fund --prefix n --registry https://npm.example.test/ labpkg &&
    node -e 'console.log(require("/workspace/n/node_modules/labpkg"))'; }
try npm noded
try denied sh -c '! curl -fsS -m 5 https://other.example.test/ok'
"#;
    let names =
        [("curl", "5000000"), ("pip", "from the lab"), ("npm", "from the lab"), ("denied", "")];
    clients(&lab, script, &names);
    let asked = lab.requested();
    assert!(asked.iter().any(|one| one.ends_with(".whl")), "{asked:?}");
    assert!(asked.iter().any(|one| one.ends_with(".tgz")), "{asked:?}");
    assert!(!asked.iter().any(|one| one.starts_with("other.")), "INV-8: {asked:?}");
    let (said, told) = lab.run(&["curl", "-fsS", "https://other.example.test/ok"]);
    assert!(said.contains("ok from"), "control: {said} {told}");
}

#[test]
fn cargo_and_apt_fetch_from_their_indexes() {
    require!(Need::Tool("apt-get"), Need::Tool("gcc"));
    let lab = Lab::of_clients();
    let script = r#"
export PATH=/mnt/rust/bin:$PATH CARGO_HOME=/workspace/cargo
mkdir -p cargo built/src
cat >cargo/config.toml <<'END'
[source.crates-io]
replace-with = "lab"
[source.lab]
registry = "sparse+https://crates.example.test/index/"
END
printf '[package]\nname = "built"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\nlabcrate = "1"\n' >built/Cargo.toml
echo 'fn main() { println!("{}", labcrate::WORD) }' >built/src/main.rs
try cargo cargo run -q --manifest-path built/Cargo.toml
mkdir -p apt/state/lists/partial apt/cache/archives/partial apt/etc
echo 'deb [trusted=yes] http://deb.example.test/repo ./' >apt/etc/sources.list
touch apt/status
apted() { get() { apt-get -q -o Dir::State=/workspace/apt/state -o Dir::State::status=/workspace/apt/status \
        -o Dir::Cache=/workspace/apt/cache -o Dir::Etc=/workspace/apt/etc -o APT::Sandbox::User= "$@"; }
    get update && get download labdeb && dpkg-deb --fsys-tarfile labdeb_1.0_all.deb | tar -xO ./usr/share/labdeb/word; }
try apt apted
"#;
    clients(&lab, script, &[("cargo", "from the lab"), ("apt", "from the lab")]);
    let asked = lab.requested();
    assert!(asked.iter().any(|one| one.ends_with("labcrate/1.0.0/download")), "{asked:?}");
    assert!(asked.iter().any(|one| one.ends_with("labdeb.deb")), "{asked:?}");
}

#[test]
fn a_database_client_grpc_and_websockets_hold_their_conversations() {
    require!(Need::Tool("psql"), Need::File("/usr/lib/python3/dist-packages/grpc"));
    require!(Need::File("/usr/lib/python3/dist-packages/websockets"));
    let lab = Lab::of_clients();
    let script = r#"
psql=$(ls /usr/lib/postgresql/*/bin/psql | tail -n 1)
try psql "$psql" -h db.example.test -U lab -d lab -At -c 'select answer'
try psql-plain "$psql" "host=db.example.test user=lab dbname=lab sslmode=disable" -At -c 'select answer'
cat >grpc_client.py <<'END'
import grpc
with open("/etc/ssl/certs/ca-certificates.crt", "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
with grpc.secure_channel("grpc.example.test:443", credentials) as channel:
    one = channel.unary_unary("/lab.Lab/One")
    print(*(one(b"word %d" % n, timeout=10).decode() for n in range(20)))
    print(len(list(channel.unary_stream("/lab.Lab/Many")(b"500", timeout=10))), "parts")
END
try grpc /usr/bin/python3 grpc_client.py
cat >ws_client.py <<'END'
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1]) as socket:
        for n in range(20):
            await socket.send(f"message {n}")
            print(await socket.recv(), end=" ")
        await socket.send("x" * 500_000)
        print(len(await socket.recv()))
asyncio.run(main())
END
try wss /usr/bin/python3 ws_client.py wss://ws.example.test/
try ws /usr/bin/python3 ws_client.py ws://ws.example.test/
"#;
    let names = [
        ("psql", "from lab"),
        ("psql-plain", "from lab"),
        ("grpc", "500 parts"),
        ("wss", "message 19 500000"),
        ("ws", "message 19 500000"),
    ];
    clients(&lab, script, &names);
    assert!(lab.heard().iter().any(|line| line["what"] == "query"), "the database heard nothing");
}
