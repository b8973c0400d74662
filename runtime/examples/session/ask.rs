//! Requests to the porter, as JSON on a line: what is asked under `ask`, and its parameters. Files and
//! archives are files of the host, opened here.

use std::time::Duration;

use serde_json::{Value, json};
use stockade_runtime::session::{
    Executables, Place, Porter, PorterError, Replace, Unpack, Wrapper,
};

/// Asks, and answers with what came of it.
pub async fn porter(porter: &Porter, input: &str) -> Value {
    let started = std::time::Instant::now();
    let input: Value = serde_json::from_str(input).unwrap_or_default();
    let asked = async {
        match input["give_up_ms"].as_u64() {
            None => ask(porter, &input).await,
            Some(ms) => {
                let limit = Duration::from_millis(ms);
                let timed = tokio::time::timeout(limit, ask(porter, &input)).await;
                timed.unwrap_or(Ok(json!("given up")))
            }
        }
    };
    let mut answer = match asked.await {
        Ok(done) => json!({ "done": done }),
        Err(PorterError::Refused { reason }) => json!({ "refused": reason.to_string() }),
        Err(error) => json!({ "error": error.to_string() }),
    };
    answer["took_us"] = json!(started.elapsed().as_micros() as u64);
    answer
}

async fn ask(porter: &Porter, input: &Value) -> Result<Value, PorterError> {
    let text = |key: &str| input[key].as_str().unwrap_or_default();
    let file = |path: &str| std::fs::File::open(path).expect("a file of the host").into();
    let store = input["store"].as_u64().unwrap_or(0) as u16;
    let (path, bytes_max) = (text("path"), input["bytes_max"].as_u64().unwrap_or(1 << 30));
    let replace = if input["replace"] == true { Replace::Swap } else { Replace::Refuse };
    let place = match text("place") {
        "workspace" => Place::Workspace,
        "store" => Place::Store(store),
        _ => Place::Skills,
    };
    let marker = b"version 1\nmemstore_1";
    Ok(match text("ask") {
        "unpack" => {
            let what = Unpack {
                place,
                directory: text("directory").to_owned(),
                wrapper: if input["keep"] == true { Wrapper::Keep } else { Wrapper::Strip },
                executables: Executables::AsRecorded,
                entries_max: input["entries_max"].as_u64().unwrap_or(10_000),
                bytes_max,
                replace,
            };
            let done = porter.unpack(file(text("archive")), what).await?;
            json!({
                "files": done.files, "directories": done.directories, "bytes": done.bytes,
                "skipped": done.skipped, "replaced": done.replaced,
            })
        }
        "put" => {
            let mode = input["mode"].as_u64().unwrap_or(0o644) as u32;
            json!(porter.put(file(text("file")), place, path, mode, bytes_max, replace).await?)
        }
        "clear" => json!(porter.clear(place).await?),
        "remove_tree" => json!(porter.remove_tree(place, path).await?),
        "prepare" => json!(porter.prepare_store(store, marker).await?),
        "scan" => {
            let scan = porter.scan(store, marker).await?;
            let files = scan.files.iter().map(|file| {
                let sum: String = file.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
                json!([file.path, file.bytes, sum])
            });
            let (marker, files) = (format!("{:?}", scan.marker), files.collect::<Vec<_>>());
            json!({ "marker": marker, "files": files, "skipped": scan.skipped })
        }
        "read" => {
            let content = porter.read(store, path, bytes_max).await?;
            json!(content.map(|content| String::from_utf8_lossy(&content).into_owned()))
        }
        "write" => json!(porter.write(store, path, text("content").into()).await?),
        "remove" => {
            let mut sum = [0; 32];
            for (byte, two) in sum.iter_mut().zip(text("sha256").as_bytes().chunks(2)) {
                let two = std::str::from_utf8(two).unwrap_or_default();
                *byte = u8::from_str_radix(two, 16).unwrap_or(0);
            }
            json!(format!("{:?}", porter.remove(store, path, sum).await?))
        }
        other => json!(format!("unknown request {other}")),
    })
}
