//! Staged input while a worker runs for long: what is told of a download, keys from variables, and
//! credentials that change. INV-1, INV-11, INV-12.

use e2e::lab::inputs::{CASE, SECRET, TOKEN};
use e2e::lab::staged::{LOOK, RECORD, Site, https, with_metadata};
use e2e::play::{SOON, bash, expect, gives, session};
use e2e::{Level, Need, require};
use serde_json::json;

#[test]
fn a_long_download_is_told_of_while_it_lasts() {
    // INV-11: and heartbeats go on; the server's leases last two seconds.
    require!(Need::Root);
    let level = Level::here()[0];
    let site = Site::with("[server]\nttl_seconds = 2\n");
    let play = session("slow", [gives(bash("wc -c <in/case.csv"), "2400")]);
    let metadata = json!({"file": "https://data.example.test/in/slow"});
    site.server.push(&with_metadata(play, metadata));
    let worker = site.worker(level, &https(RECORD));
    let (_, ran, report) = site.ended(worker);
    let told = ran.events("stage.progress");
    assert_eq!(told.len(), 2, "each five seconds of twelve: {told:?}");
    let bytes: Vec<u64> = told.iter().filter_map(|event| event["bytes"].as_u64()).collect();
    assert!(bytes[0] > 0 && bytes[0] < bytes[1] && bytes[1] < 2400, "{bytes:?}");
    for event in told {
        assert_eq!(event["rule"], "case");
        assert_eq!(event["session_id"], report["sessions"][0]["id"], "{report:#}");
    }
    assert!(ran.events("lease.lost").is_empty());
}

#[test]
fn the_key_of_a_store_can_be_in_the_environment_of_the_worker_and_nowhere_else() {
    // INV-1, INV-12: by variables that other tools know, and no session sees them.
    require!(Need::Root);
    for level in Level::here() {
        let site = Site::new();
        let rules = format!(
            "[[stage]]\nname = \"o\"\nkind = \"s3\"\nfrom = \"s3://store/bucket/in/object.bin\"\n\
             to = \"o\"\nendpoint = \"https://store.example.test\"\n{RECORD}"
        );
        let calls =
            [gives(bash("cat o"), "from the store"), expect(bash(LOOK), json!({"text": "found:"}))];
        site.server.push(&session("variables", calls));
        let config = site.inputs.config_with(level.uid(), "environment = true");
        let poll = site.poll(level, &rules).path("--config", &config);
        let poll = poll.variable("AWS_ACCESS_KEY_ID", "LABKEY");
        let poll = poll.variable("AWS_SECRET_ACCESS_KEY", SECRET);
        let worker = poll.variable("AWS_SESSION_TOKEN", "planted-70ce").serve(&site.server);
        let (inputs, ran, _) = site.ended(worker);
        let signed = |(_, target, headers): &(String, String, String)| {
            target.starts_with("/store/")
                && headers.contains("Credential=LABKEY/")
                && headers.contains("x-amz-security-token: planted-70ce")
                && !headers.contains(SECRET)
        };
        let requests = inputs.requests();
        assert!(!requests.is_empty() && requests.iter().all(signed), "{level:?}: {requests:?}");
        let audit = serde_json::to_string(&ran.audit).expect("JSON");
        assert!(!audit.contains("planted") && !ran.stderr.contains("planted"), "{level:?}");
    }
    // The control: without the variables the worker does not start.
    let site = Site::new();
    let config = site.inputs.config_with(0, "environment = true");
    // The log that it opened has no record: nothing was claimed.
    let poll = site.poll(Level::here()[0], "").path("--config", &config).may_leave();
    let ran = poll.serve(&site.server).wait().ended(9);
    assert!(ran.stderr.contains("are not both set"), "{}", ran.stderr);
}

#[test]
fn sighup_reads_credentials_again_and_all_old_ones_stay_if_one_cannot_be_read() {
    // INV-12: what is sent to a host is the credential that its file had at the last SIGHUP.
    require!(Need::Root);
    for level in Level::here() {
        let site = Site::new();
        let code = format!(
            "{}[[stage]]\nname = \"code\"\nkind = \"git\"\nfrom = \"https://git.example.test/git/lab.git\"\n\
             to = \"code\"\ncommit = \"{}\"\n",
            https(RECORD),
            site.inputs.commit
        );
        let worker = site.worker(level, &code);
        let played = std::cell::Cell::new(0);
        // The headers that one more session had sent to the data host and to that of git.
        let play = || {
            let metadata = json!({"file": "https://data.example.test/in/case.csv"});
            let name = format!("number {}", played.replace(played.get() + 1));
            let calls = [gives(bash("cat in/case.csv"), CASE.trim_end())];
            let before = site.inputs.requests().len();
            site.server.push(&with_metadata(session(&name, calls), metadata));
            site.server.wait_done(2 * SOON);
            let all = site.inputs.requests().split_off(before);
            let of = |git: bool| {
                let mut sent = all.iter().filter(|(_, at, _)| at.starts_with("/git/") == git);
                sent.next().map(|(_, _, headers)| headers.clone()).expect("a request")
            };
            (of(false), of(true))
        };
        let change = |token: &str, password: &str, mode: u32| {
            let uid = level.uid();
            site.inputs.credential(uid, "token", token, 0o600);
            site.inputs.credential(uid, "password", password, mode);
            worker.signal("HUP");
        };
        let (data, first) = play();
        assert!(data.contains(TOKEN) && first.contains("Basic "), "{level:?}: {data} {first}");
        change("Bearer planted-2222", "planted-3333", 0o640);
        worker.wait_for_event("stage.not_reloaded", SOON);
        let (data, git) = play();
        assert!(data.contains(TOKEN) && !data.contains("planted-2222"), "{level:?}: {data}");
        let basic = |headers: &str| {
            let after = headers.split("Basic ").nth(1).unwrap_or_default().to_owned();
            after.split('"').next().unwrap_or_default().to_owned()
        };
        assert_eq!(basic(&git), basic(&first), "{level:?}: all of them stay");
        change("Bearer planted-2222", "planted-3333", 0o600);
        worker.wait_for_event("stage.reloaded", SOON);
        let (data, git) = play();
        assert!(data.contains("Bearer planted-2222") && !data.contains(TOKEN), "{level:?}: {data}");
        assert_eq!(basic(&git), "bGFiOnBsYW50ZWQtMzMzMw==", "{level:?}");
        let (_, ran, _) = site.ended(worker);
        let reloaded = ran.audited("config.reloaded");
        let of = |what: &str| reloaded.iter().filter(|event| event["what"] == what).count();
        assert_eq!(of("stage-credentials"), 1, "{level:?}");
        assert!(!ran.stderr.contains("planted"), "INV-12: {}", ran.stderr);
    }
}
