//! The JSON Schema of policy files, derived from the types that parse them.
//!
//! Pure. The schema states types, bounds and names; what needs more than one value to decide
//! (narrowing, dangerous paths, duplicates) is left to `worker policy check`.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::PolicyFile;

/// The JSON Schema (draft 2020-12) of a policy file.
pub fn json_schema() -> Value {
    let mut schema: Value =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<PolicyFile>().into();
    schema["$id"] = "urn:stockade:policy:1".into();
    tidy(&mut schema);
    schema
}

/// TOML has no null, so a key that may be missing may still not be null; and the bounds of a value
/// go into its description, where editors show them.
fn tidy(schema: &mut Value) {
    if let Value::Array(items) = schema {
        items.iter_mut().for_each(tidy);
    }
    let Value::Object(object) = schema else { return };
    object.values_mut().for_each(tidy);
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if object.get("default").is_some_and(|default| default.is_null() || default.is_object()) {
        object.remove("default");
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type") != Some(&"null".into()));
        if choices.len() == 1
            && let Some(Value::Object(only)) = choices.pop()
        {
            object.remove("anyOf");
            for (key, value) in only {
                object.entry(key).or_insert(value);
            }
        }
    }
    if let Some(Value::String(expected)) = object.remove("x-expected") {
        let text = object.get("description").and_then(Value::as_str).unwrap_or_default();
        let text = format!("{text}\n\nMust be {expected}.").trim().to_owned();
        object.insert("description".to_owned(), text.into());
    }
}
