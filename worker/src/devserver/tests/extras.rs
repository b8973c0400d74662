//! Skills, memories, control endpoints and the report over HTTP.

use serde_json::{Value, json};

use super::Server;

// SKILL-1, HDR-2, §2.6
#[tokio::test]
async fn a_skill_is_found_by_id_or_as_latest_and_downloaded_by_id_only() {
    let server = Server::new(
        r#"[[session]]
        [[skill]]
        id = "skill_a"
        version = "v1"
        name = "old"
        [[skill]]
        id = "skill_a"
        version = "v2"
        name = "new"
        files = { "SKILL.md" = "text", "run.sh" = "true" }
        executable = ["run.sh"]
        [[fault]]
        on = "skill_content"
        nth = 2
        do = "corrupt""#,
    )
    .await;
    let latest = server.get("/v1/skills/skill_a/versions/latest").await.json();
    assert_eq!((&latest["id"], &latest["name"]), (&json!("v2"), &json!("new")));
    assert_eq!(server.get("/v1/skills/skill_a/versions/v1").await.json()["name"], "old");
    let path = "/v1/skills/skill_a/versions/v2/content";
    let archive = server.get(path).await;
    assert_eq!(archive.headers["content-type"], "application/zip");
    assert!(archive.bytes.starts_with(b"PK\x03\x04"));
    let mut zip =
        zip::ZipArchive::new(std::io::Cursor::new(archive.bytes.to_vec())).expect("a zip");
    assert_eq!(
        zip.by_name("new/run.sh").expect("there").unix_mode().map(|mode| mode & 0o777),
        Some(0o755)
    );
    let cut = server.get(path).await;
    assert!(zip::ZipArchive::new(std::io::Cursor::new(cut.bytes.to_vec())).is_err());
    assert_eq!(server.get("/v1/skills/skill_a/versions/latest/content").await.status, 404);
    assert_eq!(server.violations(), [""; 0]);
}

// HDR-3, UNK-1
#[tokio::test]
async fn an_epoch_version_is_known_in_the_shape_of_its_time_only() {
    let server = Server::new(
        r#"[[session]]
        [[skill]]
        id = "skill_a"
        name = "old"
        epoch = "1759178010641129"
        files = { "SKILL.md" = "text" }"#,
    )
    .await;
    let epoch = "/v1/skills/skill_a/versions/1759178010641129";
    assert_eq!(server.get(epoch).await.status, 404);
    let bearer = format!("Bearer {}", server.key);
    let old = async |path: &str| {
        let headers = [
            ("authorization", bearer.as_str()),
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", "skills-2025-10-02"),
        ];
        server.with("GET", path, &headers, String::new()).await
    };
    let version = old(epoch).await.json();
    assert_eq!(
        (&version["version"], &version["directory"], &version["id"]),
        (&json!("1759178010641129"), &json!("old"), &Value::Null)
    );
    assert!(old(&format!("{epoch}/content")).await.bytes.starts_with(b"PK"));
    assert_eq!(old("/v1/skills/skill_a/versions/skillver_1").await.status, 404);
    assert_eq!(server.violations(), [""; 0]);
}

// SKILL-5
#[tokio::test]
async fn an_archive_is_of_the_kind_that_the_script_says() {
    for (format, magic) in [
        ("tar", &b"new/SKILL.md"[..]),
        ("tgz", &[0x1f, 0x8b]),
        ("tbz", b"BZh"),
        ("txz", &[0xfd, b'7', b'z', b'X', b'Z', 0]),
    ] {
        let server = Server::new(&format!(
            "[[session]]\n[[skill]]\nid = \"a\"\nname = \"new\"\nformat = \"{format}\"\n\
             files = {{ \"SKILL.md\" = \"text\" }}\n[[fault]]\non = \"skill_content\"\n\
             do = \"trickle\"\nms = 1"
        ))
        .await;
        let archive = server.get("/v1/skills/a/versions/skillver_1/content").await;
        assert!(archive.bytes.starts_with(magic), "{format}: {:?}", &archive.bytes[..16]);
        let again = server.get("/v1/skills/a/versions/skillver_1/content").await;
        assert_eq!(again.bytes, archive.bytes, "in pieces as at once");
    }
}

// MEMAPI-1, MEMAPI-2, AUTH-6
#[tokio::test]
async fn memories_are_kept_with_preconditions() {
    let server = Server::new(
        "[[session]]\n[[memory_store]]\nid = \"memstore_1\"\nmemories = { \"/a.md\" = \"one\", \"/d/b.md\" = \"two\", \"/d/c.md\" = \"three\" }",
    )
    .await;
    let claim = server.claim().await;
    let base = "/v1/memory_stores/memstore_1/memories";
    let ask = async |method: &str, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        server.ask(&claim.token, method, &format!("{base}{path}"), &body).await
    };
    let page = ask("GET", "?limit=2", Value::Null).await.json();
    assert_eq!(
        (&page["data"][0]["path"], &page["data"][0]["content"]),
        (&json!("/a.md"), &Value::Null)
    );
    assert_eq!(page["data"][0]["content_size_bytes"], 3);
    let next = page["next_page"].as_str().expect("more");
    let rest = ask("GET", &format!("?limit=2&page={next}"), Value::Null).await.json();
    assert_eq!(
        (rest["data"].as_array().map(Vec::len), &rest["next_page"]),
        (Some(1), &Value::Null)
    );
    let short = ask("GET", "?depth=1", Value::Null).await.json();
    assert_eq!(short["data"][1], json!({"type": "memory_prefix", "path": "/d/"}));
    assert_eq!(ask("GET", "?view=full&limit=21", Value::Null).await.status, 400);
    let id = page["data"][0]["id"].as_str().expect("an id").to_owned();
    let one = ask("GET", &format!("/{id}"), Value::Null).await.json();
    assert_eq!(one["content"], "one");
    let sha = one["content_sha256"].as_str().expect("a digest").to_owned();
    let with = |content: &str, sha: &str| json!({"content": content, "precondition": {"type": "content_sha256", "content_sha256": sha}});
    let updated = ask("POST", &format!("/{id}"), with("1", &sha)).await;
    assert_eq!(updated.status, 200);
    let stale = ask("POST", &format!("/{id}"), with("2", &sha)).await;
    assert_eq!(
        (stale.status, &stale.json()["error"]["type"]),
        (409, &json!("memory_precondition_failed_error"))
    );
    assert_eq!(
        ask("POST", &format!("/{id}"), with("1", &sha)).await.status,
        200,
        "nothing to change"
    );
    let made = ask("POST", "", json!({"path": "/new.md", "content": "x"})).await;
    assert_eq!(made.status, 200);
    let again = ask("POST", "", json!({"path": "/new.md", "content": "x"})).await;
    assert_eq!(
        (again.status, &again.json()["error"]["type"]),
        (409, &json!("memory_path_conflict_error"))
    );
    let large = "x".repeat(102_401);
    assert_eq!(ask("POST", "", json!({"path": "/l", "content": large})).await.status, 413);
    assert_eq!(ask("POST", "", json!({"path": "../l", "content": "x"})).await.status, 400);
    let gone = format!("/{id}?expected_content_sha256={sha}");
    assert_eq!(ask("DELETE", &gone, Value::Null).await.status, 409);
    let deleted = ask("DELETE", &format!("/{id}"), Value::Null).await.json();
    assert_eq!(deleted["type"], "memory_deleted");
    assert_eq!(ask("GET", &format!("/{id}"), Value::Null).await.status, 404);
    assert_eq!(server.violations(), [""; 0]);
    assert_eq!(server.get(base).await.status, 403, "not with the environment key");
    assert_eq!(server.violations()[0], "credential_misuse");
    let kept = server.dev("GET", "memory_stores/memstore_1", &Value::Null).await.json();
    assert_eq!(kept["/new.md"], "x");
}

// SIM-6, SIM-7, MEM-8
#[tokio::test]
async fn a_store_can_be_read_only_changed_by_another_writer_and_expected() {
    let server = Server::new(
        r#"[[session]]
        name = "one"
        resources = [{ type = "memory_store", memory_store_id = "memstore_1", access = "read_only" }]
        [[memory_store]]
        id = "memstore_1"
        memories = { "/a" = "1", "/b" = "1" }
        expect = { "/a" = "2", "/c" = "3", "/d" = "4" }
        [[fault]]
        on = "memory_list"
        do = "503"
        session = "one"
        page = 2"#,
    )
    .await;
    let claim = server.claim().await;
    let base = "/v1/memory_stores/memstore_1/memories";
    let list = async |query: &str| {
        server.ask(&claim.token, "GET", &format!("{base}?{query}"), "").await.status
    };
    assert_eq!(list("limit=1").await, 200, "page 1");
    assert_eq!(list("limit=1&page=mempage_1").await, 503, "page 2 of this session");
    let change = json!({"put": {"/a": "2", "/c": "x"}, "remove": ["/b"]});
    let after = server.dev("POST", "memory_stores/memstore_1", &change).await.json();
    assert_eq!(after, json!({"/a": "2", "/c": "x"}));
    assert_eq!(server.dev("POST", "memory_stores/other", &change).await.status, 404);
    let new = json!({"path": "/e", "content": "x"}).to_string();
    assert_eq!(server.ask(&claim.token, "POST", base, &new).await.status, 403);
    assert_eq!(server.violations(), ["read_only_store"]);
    let report = server.dev("GET", "report?final=true", &Value::Null).await.json();
    let failures = report["failures"].to_string();
    assert!(failures.contains("memstore_1: /c has another text"), "{failures}");
    assert!(failures.contains("memstore_1: /d is missing"), "{failures}");
    assert!(!failures.contains("memstore_1: /a"), "{failures}");
}

#[tokio::test]
async fn a_run_can_be_steered_while_it_runs() {
    let server = Server::new("").await;
    assert_eq!(server.dev("GET", "health", &Value::Null).await.json()["ok"], true);
    let added = server
        .dev("POST", "sessions", &json!({"name": "n", "copies": 2, "calls": [{"bash": "a"}]}))
        .await;
    assert_eq!(added.json()["ids"], json!(["sesn_000001", "sesn_000002"]));
    let wrong = server.dev("POST", "sessions", &json!({"nam": "n"})).await;
    assert_eq!(wrong.status, 400);
    assert_eq!(server.dev("POST", "pause", &Value::Null).await.json()["paused"], true);
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    let one = server.dev("GET", "sessions/sesn_000001", &Value::Null).await.json();
    assert_eq!(
        (&one["calls"], &one["name"], &one["attached"]),
        (&json!(0), &json!("n 1"), &json!(true))
    );
    assert_eq!(server.dev("POST", "resume", &Value::Null).await.json()["paused"], false);
    stream.call().await;
    let before = server.dev("GET", "state", &Value::Null).await.json();
    assert_eq!(before["work"][0]["state"], "active");
    let jumped = server.dev("POST", "advance", &json!({"ms": 400_000})).await.json();
    assert!(jumped["now_us"].as_u64() >= Some(400_000_000));
    let after = server.dev("GET", "state", &Value::Null).await.json();
    assert_eq!(after["work"][0]["state"], "queued");
    assert_eq!(server.dev("POST", "work", &json!({"type": "healthcheck"})).await.status, 200);
    assert_eq!(server.dev("GET", "nothing", &Value::Null).await.status, 404);
}

#[tokio::test]
async fn the_report_counts_times_and_sizes() {
    let server = Server::new(
        "[[session]]\ncalls = [{ bash = \"a\", repeat = 3, expect = { bytes_max = 2 } }]",
    )
    .await;
    let claim = server.claim().await;
    let mut stream = server.attach(&claim).await;
    for _ in 0..3 {
        let call = stream.call().await;
        assert_eq!(server.result(&claim, &call, "xy").await.status, 200);
    }
    stream.until("session.status_terminated").await;
    assert_eq!(server.stop(&claim, "{\"force\":true}").await.status, 204);
    let report = server.dev("GET", "report", &Value::Null).await.json();
    assert_eq!(
        (&report["schema"], &report["schema_version"]),
        (&json!("stockade.devserver.report"), &json!(1))
    );
    assert_eq!((&report["result"], &report["done"]), (&json!("passed"), &json!(true)));
    assert_eq!(report["requests"]["send"], json!({"count": 3, "statuses": {"200": 3}}));
    let call = &report["sessions"][0]["calls"][2];
    assert_eq!((&call["bytes"], &call["is_error"]), (&json!(2), &json!(false)));
    assert!(call["answered_us"].as_u64() >= call["delivered_us"].as_u64());
    assert_eq!(call["result"]["content"][0]["text"], "xy", "kept, because the test asks for it");
    assert_eq!(report["latency_us"]["count"], 3);
    let holder = &report["work"][0]["holders"][0];
    assert_eq!((&holder["worker"], &holder["heartbeats"]), (&json!("w1"), &json!(1)));
    assert_eq!(holder["stops"][0]["force"], true);
    assert_eq!(report["anthropic_versions"], json!({"2026-10-21": 9}));
    let table = super::super::table(&report);
    assert!(table.ends_with("passed\n") && table.contains("3 answered"), "{table}");
}
