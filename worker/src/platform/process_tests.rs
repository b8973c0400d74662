use super::*;

use std::time::{Instant, SystemTime};

use aws_runtime::env_config::file::EnvConfigFileKind;

fn process(command: &str, time_max: Duration) -> CredentialProcess {
    CredentialProcess { command: SecretString::from(command), time_max }
}

fn alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_process_that_hangs_is_killed_with_what_it_started_and_reaped() {
    // AWS-4, INV-10: it and its child ignore SIGTERM.
    let place = tempfile::TempDir::new().expect("a directory");
    let pids = place.path().join("pids");
    let command = format!(
        "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & echo $$ $! > {0}.new; mv {0}.new \
         {0}; while :; do sleep 0.1; done",
        pids.display()
    );
    let began = Instant::now();
    let hung = process(&command, Duration::from_secs(2)).ask().await.expect_err("it hangs");
    assert!(matches!(hung, CredentialsError::ProviderTimedOut(_)), "{hung:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    let pids = std::fs::read_to_string(&pids).expect("it had begun");
    let pids: Vec<&str> = pids.split_whitespace().collect();
    assert_eq!(pids.len(), 2);
    for _ in 0..50 {
        if !pids.iter().any(|pid| alive(pid)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!pids.iter().any(|pid| alive(pid)), "one is left: {pids:?}");
    let gone = std::path::Path::new("/proc").join(pids[0]);
    assert!(!gone.exists(), "our own child is reaped");
}

#[tokio::test]
async fn what_a_process_prints_are_credentials_or_an_error_that_shows_none_of_it() {
    // AWS-4, AUTH-8.
    let good = "{\"Version\": 1, \"accesskeyid\": \"AKIA\", \"SecretAccessKey\": \"planted\", \
                \"SessionToken\": \"t\", \"Expiration\": \"2099-01-01T01:00:00+01:00\"}";
    let time_max = Duration::from_secs(10);
    let found = process(&format!("echo '{good}'"), time_max).ask().await.expect("credentials");
    assert_eq!((found.access_key_id(), found.secret_access_key()), ("AKIA", "planted"));
    assert_eq!(found.session_token(), Some("t"));
    let expiry = found.expiry().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    assert_eq!(expiry.map(|at| at.as_secs()), Some(4_070_908_800));
    for command in [
        format!("echo '{good}'; exit 1"),
        format!("echo '{}'", good.replace("1,", "2,")),
        format!("echo '{}'", good.replace("accesskeyid", "id")),
        format!("echo '{}'", good.replace("2099-01-01", "soon planted")),
        "echo planted".to_owned(),
        "head -c 100000 /dev/zero".to_owned(),
        "exec /nonexistent/planted".to_owned(),
    ] {
        let error = process(&command, time_max).ask().await.expect_err(&command);
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let shown = format!("{error} {source:?} {:?}", process(&command, time_max));
        assert!(!shown.contains("planted"), "{command}: {shown}");
    }
}

async fn found_in(config: &str, credentials: &str, named: &str) -> Option<(String, String)> {
    let files = EnvConfigFiles::builder()
        .with_contents(EnvConfigFileKind::Config, config)
        .with_contents(EnvConfigFileKind::Credentials, credentials)
        .build();
    let found = find(&files, Some(named.to_owned())).await?;
    Some((found.overlay, found.process.command.expose_secret().to_owned()))
}

#[tokio::test]
async fn the_process_is_that_of_the_profile_at_the_end_of_the_chain() {
    // AWS-4: as AWS's library has it.
    let config = "[profile p]\ncredential_process = run p\n\
         [profile role]\nrole_arn = a\nsource_profile = p\n\
         [profile own]\nrole_arn = a\nsource_profile = own\ncredential_process = run own\n\
         [profile static]\nrole_arn = a\nsource_profile = both\n\
         [profile both]\naws_access_key_id = i\naws_secret_access_key = s\ncredential_process = run both\n\
         [profile sso]\nsso_session = x\ncredential_process = run sso\n\
         [profile named]\ncredential_source = Environment\ncredential_process = run named\n\
         [profile loop]\nrole_arn = a\nsource_profile = pool\n\
         [profile pool]\nrole_arn = a\nsource_profile = loop\n\
         [profile bare]\nrole_arn = a\ncredential_process = run bare\n";
    let direct = |name: &str| format!("[{name}]\ncredential_source = {SOURCE}\n");
    let own =
        format!("[own]\nsource_profile = {SOURCE}\n[{SOURCE}]\ncredential_source = {SOURCE}\n");
    for (named, want) in [
        ("p", Some((direct("p"), "run p"))),
        ("role", Some((direct("p"), "run p"))),
        ("own", Some((own, "run own"))),
        ("both", Some((direct("both"), "run both"))),
        ("static", None),
        ("sso", None),
        ("named", None),
        ("loop", None),
        ("bare", None),
        ("none", None),
    ] {
        let want = want.map(|(overlay, command)| (overlay, command.to_owned()));
        assert_eq!(found_in(config, "", named).await, want, "{named}");
    }
    let shared = found_in("", "[p]\ncredential_process = run shared\n", "p").await;
    assert_eq!(shared.map(|(_, command)| command).as_deref(), Some("run shared"));
}
