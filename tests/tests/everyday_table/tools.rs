//! Compilers, version control, shells, runtimes and small tools.

use super::{BASH, Program};

const fn program(
    name: &'static str,
    tools: &'static [&'static str],
    script: &'static str,
    says: &'static str,
) -> Program {
    Program { name, tools, runner: BASH, script, says }
}

/// Compilers, make and git.
pub const BUILD: &[Program] = &[
    program(
        "gcc compiles and the result runs",
        &["gcc"],
        r#"printf '#include <stdio.h>\nint main(void){puts("compiled");}\n' >a.c
           gcc -O2 -o a a.c && ./a"#,
        "compiled",
    ),
    program(
        "gcc links a shared library and dlopen loads it",
        &["gcc"],
        r#"echo 'int f(void){return 42;}' >l.c; gcc -shared -fPIC -o l.so l.c
           printf '#include <dlfcn.h>\n#include <stdio.h>\nint main(void){void*h=dlopen("./l.so",2);int(*f)(void)=dlsym(h,"f");printf("%%d\\n",f());}' >m.c
           gcc -o m m.c -ldl && ./m"#,
        "42",
    ),
    program(
        "make builds in parallel with a job server",
        &["make", "gcc"],
        r#"printf 'all: a b c d\n%%:\n\t@sleep 0.05; echo $@ >$@\n' >Makefile
           make -s -j4 && cat a b c d | tr -d '\n'"#,
        "abcd",
    ),
    program(
        "git init, commit and log",
        &["git"],
        r#"git init -q r && cd r && git config user.email a@b.c && git config user.name n
           echo x >f && git add f && git commit -qm first && git log --format=%s"#,
        "first",
    ),
    program(
        "git clones a local repository and merges",
        &["git"],
        r#"export GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=e GIT_COMMITTER_NAME=n GIT_COMMITTER_EMAIL=e
           git init -q -b main r && cd r && echo 1 >f && git add f && git commit -qm one
           git clone -q . ../c && cd ../c && git checkout -qb side && echo 2 >g && git add g &&
           git commit -qm two && git checkout -q main && git merge -q side && git gc -q &&
           git status --porcelain && git log --oneline | wc -l"#,
        "2",
    ),
    program(
        "git stashes, rebases and shows a diff",
        &["git"],
        r#"export GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=e GIT_COMMITTER_NAME=n GIT_COMMITTER_EMAIL=e
           git init -q -b main r && cd r && echo 1 >f && git add f && git commit -qm one
           echo 2 >f && git stash -q && git stash pop -q && git diff --stat | tail -1"#,
        "1 file changed",
    ),
    program(
        "g++ with exceptions and threads",
        &["g++"],
        r#"printf '#include <thread>\n#include <iostream>\nint main(){int n=0;std::thread t([&]{try{throw 7;}catch(int e){n=e;}});t.join();std::cout<<n<<"\\n";}' >a.cc
           g++ -pthread -o a a.cc && ./a"#,
        "7",
    ),
];

/// What a shell and the small tools do.
pub const SHELL: &[Program] = &[
    program(
        "background jobs and wait",
        &[],
        "sleep 0.1 & a=$!; (exit 3) & b=$!; wait $a; wait $b; echo status $?",
        "status 3",
    ),
    program(
        "job control in an interactive shell",
        &["script"],
        r#"script -qec "bash --norc -ic 'set -m; sleep 5 & kill -STOP %1; sleep 0.1; jobs -s >j; kill -KILL %1; wait; echo stopped \$(wc -l <j)'" /dev/null | tr -d '\r'"#,
        "stopped 1",
    ),
    program("here-documents", &[], "cat <<X\nfirst\nlast $((6*7))\nX", "last 42"),
    program("pipes and process substitution", &[], "diff <(seq 9) <(seq 9) && echo same", "same"),
    program("a terminal through script", &["script"], "script -qec 'tty' /dev/null", "/dev/pts/"),
    program("FIFOs", &["mkfifo"], "mkfifo p; (echo through >p) & cat p", "through"),
    program("flock", &["flock"], "(flock 9; echo held) 9>lock", "held"),
    program("timeout ends a command", &["timeout"], "timeout 0.2 sleep 5; echo $?", "124"),
    program(
        "tar and gzip there and back",
        &["tar", "gzip"],
        "mkdir d; seq 999 >d/f; tar czf d.tgz d; rm -r d; tar xzf d.tgz; tail -1 d/f",
        "999",
    ),
    program(
        "find, xargs, sed, awk and sort",
        &["find", "sed", "awk", "sort"],
        r#"for i in 3 1 2; do echo "v $i" >f$i; done
           find . -name 'f*' -print0 | xargs -0 cat | sed s/v/w/ | awk '{s+=$2}END{print s}'"#,
        "6",
    ),
    program(
        "sort with files in /tmp",
        &["sort"],
        "seq 300000 | sort -R -S 1M -T /tmp | sort -n -S 1M | tail -1",
        "300000",
    ),
    program("ps shows the jail's own processes", &["ps"], "ps aux | grep -c '[b]ash'", ""),
    program("id and whoami agree", &[], "test \"$(id -un)\" = \"$(whoami)\" && id -u", "1000"),
    program("hostname and uname", &["hostname"], "hostname && uname -s", "Linux"),
    program(
        "df and du",
        &["df"],
        "df -k /workspace >/dev/null && df / >/dev/null && du -sk . | wc -l",
        "1",
    ),
    program(
        "mktemp",
        &[],
        "f=$(mktemp) && d=$(mktemp -d) && test -f $f && test -d $d && echo made",
        "made",
    ),
    program(
        "links, modes and renames across directories",
        &[],
        "mkdir a b; echo x >a/f; ln a/f b/h; ln -s ../a/f b/s; chmod 700 a; mv a/f b/g; \
         stat -c %h b/g; mv b a/; cat a/b/g",
        "x",
    ),
    program(
        "sparse files",
        &["truncate"],
        "truncate -s 4G big && test $(du -k big | cut -f1) -lt 100 && stat -c %s big",
        "4294967296",
    ),
    program(
        "the usual devices",
        &[],
        "echo x >/dev/null; head -c 9 /dev/zero | wc -c; head -c 9 /dev/urandom >r; : >/dev/full 2>/dev/null; \
         (echo x >/dev/full) 2>/dev/null || echo full",
        "full",
    ),
    program(
        "descriptors by name",
        &[],
        "ls -l /proc/self/fd >/dev/null; echo by name >/dev/stdout",
        "by name",
    ),
    program("date and zone", &[], "TZ=UTC date -d @0 +%Y", "1970"),
    program(
        "locale",
        &["locale"],
        "locale >/dev/null && LC_ALL=C.UTF-8 printf '\\u00e9' | wc -c",
        "2",
    ),
    program(
        "names of users and hosts",
        &["getent"],
        "getent passwd 1000 && getent group 1000 && getent hosts localhost",
        "localhost",
    ),
    program(
        "certificates can be read",
        &[],
        "test -s /etc/ssl/certs/ca-certificates.crt && echo there",
        "there",
    ),
    program("ulimit can be lowered", &[], "ulimit -n 100 && ulimit -c 0 && ulimit -n", "100"),
    program("nice and renice downwards", &["nice"], "nice -n 5 nice", "5"),
    program(
        "a script with a shebang line",
        &[],
        "printf '#!/bin/sh\\necho hashbang\\n' >s; chmod +x s; ./s",
        "hashbang",
    ),
    program(
        "nohup and setsid",
        &["nohup", "setsid"],
        "nohup true 2>/dev/null; setsid -w echo own",
        "own",
    ),
];

/// Other runtimes, debuggers and clients.
pub const TOOLS: &[Program] = &[
    program(
        "perl forks and opens pipes",
        &["perl"],
        "perl -e 'open(P,\"-|\",\"echo piped\");print <P>'",
        "piped",
    ),
    program("node runs", &["node"], "node -e 'console.log([1,2,3].map(x=>x*2).join())'", "2,4,6"),
    program(
        "node worker threads",
        &["node"],
        r#"node -e 'const{Worker}=require("worker_threads");new Worker("require(\"worker_threads\").parentPort.postMessage(42)",{eval:true}).on("message",m=>console.log("got",m))'"#,
        "got 42",
    ),
    program(
        "node compiles hot code and webassembly",
        &["node"],
        r#"node -e 'let s=0;for(let i=0;i<3e7;i++)s=(s+i*i)|0;const m=new WebAssembly.Module(Uint8Array.of(0,97,115,109,1,0,0,0));new WebAssembly.Instance(m);console.log("hot")'"#,
        "hot",
    ),
    program(
        "node serves and fetches over loopback",
        &["node"],
        r#"node -e 'const h=require("http");const s=h.createServer((q,r)=>r.end("served")).listen(0,"127.0.0.1",()=>h.get({port:s.address().port,host:"127.0.0.1"},r=>r.on("data",d=>{console.log(""+d);s.close()})))'"#,
        "served",
    ),
    program(
        "node starts children and watches files",
        &["node"],
        r#"node -e 'const fs=require("fs"),c=require("child_process");const w=fs.watch(".",()=>{w.close();console.log(c.execSync("echo watched")+"")});setTimeout(()=>fs.writeFileSync("n","1"),50)' | head -1"#,
        "watched",
    ),
    program(
        "java runs a source file",
        &["java", "javac"],
        r#"printf 'public class A{public static void main(String[] a)throws Exception{Thread t=new Thread(()->System.out.println("jvm"));t.start();t.join();}}' >A.java; java -Xmx256m A.java"#,
        "jvm",
    ),
    program(
        "strace follows a child of its own",
        &["strace"],
        "strace -f -o log true; grep -c execve log",
        "1",
    ),
    program(
        "gdb runs a child of its own",
        &["gdb", "gcc"],
        r#"echo 'int f(int x){return x*2;}int main(void){return f(21);}' >g.c; gcc -g -o g g.c
           gdb -q -batch -ex 'break f' -ex run -ex 'print x' ./g 2>/dev/null | tail -1"#,
        "21",
    ),
    program(
        "gdb attaches to a process of its own user",
        &["gdb"],
        "sleep 20 & gdb -q -batch -p $! -ex 'info proc' 2>/dev/null | grep -c 'cmdline'; kill %1",
        "1",
    ),
    program(
        "sqlite3 on the command line",
        &["sqlite3"],
        "sqlite3 d.db 'create table t(x);insert into t values(7);select x from t'",
        "7",
    ),
    program(
        "curl over loopback",
        &["curl", "python3"],
        "echo served >f; /usr/bin/python3 -m http.server 8123 --bind 127.0.0.1 >/dev/null 2>&1 & \
         for i in $(seq 50); do curl -s http://127.0.0.1:8123/f && break; sleep 0.1; done",
        "served",
    ),
    program(
        "openssl makes a key",
        &["openssl"],
        "openssl genpkey -algorithm ed25519 2>/dev/null | head -1",
        "BEGIN PRIVATE KEY",
    ),
    program("jq", &["jq"], "echo '{\"a\":[1,2]}' | jq '.a|add'", "3"),
    program("xz and zip", &["xz"], "seq 99 | xz -T2 | xz -d | tail -1", "99"),
    program(
        "vim edits without a screen",
        &["vim"],
        "vim -es -u NONE -c 'norm iedited' -c 'wq! out' >/dev/null 2>&1; cat out",
        "edited",
    ),
    program(
        "tmux runs a window",
        &["tmux"],
        "export TMUX_TMPDIR=/tmp; tmux -f /dev/null new-session -d 'echo in >w; sleep 0.2' && sleep 0.6; cat w",
        "in",
    ),
    program(
        "ip and ss read the network",
        &["ip", "ss"],
        "ip -o link show lo | grep -c UP && ss -ltn >/dev/null && ip route >/dev/null && echo read",
        "read",
    ),
    program("file and xxd", &["file", "xxd"], "printf '\\x7fELF' | xxd -p", "7f454c46"),
    program(
        "gpg makes a digest",
        &["gpg"],
        "echo x | gpg --homedir . --batch --print-md sha256 2>/dev/null | wc -l",
        "1",
    ),
];
