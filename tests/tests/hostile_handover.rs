//! The hand-over of a bound directory after the payload's death: what a payload arranged in it must
//! neither lead the copy elsewhere nor make it hang, overflow or fail. INV-7, INV-11; `jail.md`
//! §2.1 (CVE-2018-15664 and CVE-2019-14271 "docker cp", CVE-2024-45310), §2.5 (CVE-2026-46406).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use e2e::bait::{Bait, SECRET};
use e2e::exec::{directory_of, give};
use e2e::{End, Exec, Level, Outcome};

fn run(level: Level, dir: &Path, script: &str) -> Outcome {
    Exec::at(level).workspace(dir).timeout(Duration::from_secs(40)).bash(script)
}

#[test]
fn links_and_directories_that_change_places_are_not_followed() {
    for level in Level::here() {
        let mut bait = Bait::plant(level);
        let dir = directory_of(level);
        let at = |name: &str| dir.path().join(name);
        symlink(bait.dir(), at("was-link")).expect("cannot link");
        symlink("/etc", at("etc")).expect("cannot link");
        fs::create_dir(at("was-dir")).expect("cannot create");
        fs::write(at("was-dir/secret"), "mine").expect("cannot write");
        for name in ["was-dir", "was-dir/secret"] {
            give(&at(name), level);
        }
        let script = bait.fill(
            "set -e; rm was-link etc; mkdir was-link etc; echo x >was-link/secret; \
             echo x >etc/e2e-escaped; rm -r was-dir; ln -s {dir} was-dir; ln -s / root; \
             mkdir a; ln -s ../../../../../../..{dir} a/up; mv a b; ln -s b a",
        );
        let outcome = run(level, dir.path(), &script);
        assert!(outcome.ok(), "{level:?}: {}", outcome.text());
        assert_eq!(bait.touched(), [""; 0], "INV-7 {level:?}");
        assert!(!Path::new("/etc/e2e-escaped").exists(), "INV-7 {level:?}");
        let text = |name: &str| fs::read_to_string(at(name)).unwrap_or_default();
        assert_eq!(text("was-link/secret"), "x\n", "{level:?}: not handed over");
        assert_eq!(text("etc/e2e-escaped"), "x\n", "{level:?}: not handed over");
        let link = fs::read_link(at("was-dir")).expect("a link took the directory's place");
        assert_eq!(link, bait.dir(), "{level:?}");
        // A second run on what the first one left.
        let outcome = run(level, dir.path(), "cat was-dir/secret; echo y >was-dir/secret; true");
        assert!(!outcome.stdout.contains(SECRET), "INV-7 {level:?}: {}", outcome.text());
        assert_eq!(bait.touched(), [""; 0], "INV-7 {level:?}");
    }
}

#[test]
fn odd_things_do_not_stop_the_hand_over() {
    let script = "mkfifo pipe; python3 -c 'import socket; socket.socket(1).bind(\"sock\")'; \
                  echo x >locked; chmod 0 locked; mkdir shut; echo x >shut/in; chmod 0 shut; \
                  echo x >$'new\\nline'; echo x >$'bad\\xff'; echo x >\"$(printf %0255d 0)\"; \
                  echo x >.wh.name; echo x >-rf; mkdir .git; echo x >.git/config; \
                  d=$(printf %0200d 1); for i in $(seq 30); do mkdir $d && cd $d || break; done; \
                  cd /workspace; ln -s loop loop; ln -s $(printf %04000d 0) long; \
                  truncate -s 200M sparse; touch -d @0 old; touch -d @9999999999 new; echo last >z";
    for level in Level::here() {
        let dir = directory_of(level);
        let outcome = run(level, dir.path(), script);
        assert!(outcome.ok(), "{level:?}: {}", outcome.text());
        let at = |name: &str| dir.path().join(name);
        assert_eq!(fs::read_to_string(at("z")).unwrap_or_default(), "last\n", "{level:?}");
        assert_eq!(fs::read_to_string(at("-rf")).unwrap_or_default(), "x\n", "{level:?}");
        let sparse = fs::metadata(at("sparse")).expect("sparse files come back");
        assert!(sparse.blocks() < 1000, "{level:?}: {} blocks of a hole", sparse.blocks());
        let shut = fs::metadata(at("shut"))
            .unwrap_or_else(|error| panic!("{level:?}: `shut`: {error}: {}", outcome.text()));
        assert_eq!(shut.mode() & 0o777, 0, "{level:?}");
        // The test's own directory must be removable.
        fs::set_permissions(at("shut"), fs::Permissions::from_mode(0o700)).expect("cannot chmod");
        assert_eq!(fs::read_to_string(at("shut/in")).unwrap_or_default(), "x\n", "{level:?}");
    }
}

#[test]
fn attributes_of_the_overlay_mean_nothing_when_a_payload_sets_them() {
    let script = "mkdir -p real/sub; echo x >real/f; mkdir fake; python3 - <<'X'\n\
import os\n\
for name in ('user.overlay.redirect', 'user.overlay.opaque', 'user.overlay.metacopy'):\n\
    for path in ('fake', 'real', 'real/f'):\n\
        try: os.setxattr(path, name, b'/../../../../etc')\n\
        except OSError: pass\n\
X\n\
ls fake; cat real/f";
    for level in Level::here() {
        let dir = directory_of(level);
        let outcome = run(level, dir.path(), script);
        assert_eq!(outcome.stdout, "x\n", "{level:?}: {}", outcome.text());
        let again = run(level, dir.path(), "ls fake; cat real/f");
        assert_eq!(again.stdout, "x\n", "INV-7 {level:?}: {}", again.text());
        let names = fs::read_dir(dir.path().join("fake")).expect("handed over").count();
        assert_eq!(names, 0, "{level:?}");
    }
}

#[test]
fn what_is_removed_inside_is_removed_outside_and_nothing_else() {
    for level in Level::here() {
        let dir = directory_of(level);
        for name in ["keep", "drop", "tree/a/b", "tree/c"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("below the directory")).expect("cannot create");
            fs::write(&path, name).expect("cannot write");
            give(&path, level);
        }
        for name in ["tree", "tree/a"] {
            give(&dir.path().join(name), level);
        }
        let outcome =
            run(level, dir.path(), "rm drop; rm -r tree/a; mv tree/c d; echo more >>keep");
        assert!(outcome.ok(), "{level:?}: {}", outcome.text());
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        assert_eq!(text("keep"), "keepmore\n", "{level:?}");
        assert_eq!(text("d"), "tree/c", "{level:?}");
        for gone in ["drop", "tree/a", "tree/c"] {
            assert!(!dir.path().join(gone).exists(), "{level:?}: {gone} came back");
        }
        assert!(dir.path().join("tree").is_dir(), "{level:?}");
    }
}

#[test]
fn a_killed_run_hands_over_what_was_written_before() {
    for level in Level::here() {
        let dir = directory_of(level);
        let exec = Exec::at(level).workspace(dir.path()).limit("wall=1s");
        let outcome = exec.bash("echo done >part; sleep 60");
        assert_eq!(outcome.end, End::Exit(124), "{level:?}: {}", outcome.text());
        let text = fs::read_to_string(dir.path().join("part")).unwrap_or_default();
        assert_eq!(text, "done\n", "{level:?}: {}", outcome.text());
    }
}

#[test]
fn two_jails_that_share_a_directory_hand_over_whole_files() {
    for level in Level::here() {
        let dir = directory_of(level);
        let runs: Vec<_> = ["one", "two", "three"]
            .into_iter()
            .map(|who| {
                let script = format!(
                    "for n in $(seq 150); do echo {who} >shared$n; echo {who} >{who}$n; done"
                );
                Exec::at(level).workspace(dir.path()).spawn(&["/bin/bash", "-c", &script])
            })
            .collect();
        for run in runs {
            let outcome = run.wait();
            assert!(outcome.ok() && outcome.stderr.is_empty(), "{level:?}: {}", outcome.text());
        }
        let files: Vec<_> = fs::read_dir(dir.path()).expect("listed").flatten().collect();
        assert_eq!(files.len(), 4 * 150, "{level:?}");
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            let text = fs::read_to_string(file.path()).expect("read");
            let fits = match name.strip_prefix("shared") {
                Some(_) => ["one\n", "two\n", "three\n"].contains(&text.as_str()),
                None => name.starts_with(text.trim()),
            };
            assert!(fits, "{level:?}: {name} holds `{text}`");
        }
    }
}
