//! Whether a value conforms to our JSON Schema. Patterns are not tried: the parser is.

use serde_json::Value;

/// The part of JSON Schema that our schema uses; an unknown keyword fails the test.
pub(super) fn conforms(
    root: &Value,
    schema: &Value,
    value: &Value,
    path: &str,
) -> Result<(), String> {
    let fail = |why: &str| Err(format!("{path}: {why}: {value}"));
    for (keyword, rule) in schema.as_object().ok_or_else(|| format!("{path}: {schema}"))? {
        let any = |rules: &Value| {
            let rules = rules.as_array().into_iter().flatten();
            rules.filter(|rule| conforms(root, rule, value, path).is_ok()).count()
        };
        let (number, bound) = (value.as_f64(), rule.as_f64());
        match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" | "pattern" | "default"
            | "format" => {}
            "$ref" => {
                let pointer = rule.as_str().unwrap_or_default().trim_start_matches('#');
                let target = root.pointer(pointer).ok_or(format!("{path}: dangling {rule}"))?;
                conforms(root, target, value, path)?;
            }
            "type" => {
                if !has_type(value, rule.as_str().unwrap_or_default()) {
                    return fail("wrong type");
                }
            }
            "properties" => {
                for (key, rule) in rule.as_object().into_iter().flatten() {
                    if let Some(inner) = value.get(key) {
                        conforms(root, rule, inner, &format!("{path}.{key}"))?;
                    }
                }
            }
            "additionalProperties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    if schema.pointer(&format!("/properties/{key}")).is_none() {
                        if rule == &Value::Bool(false) {
                            return fail(key);
                        }
                        conforms(root, rule, inner, &format!("{path}.{key}"))?;
                    }
                }
            }
            "required" => {
                for key in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if value.get(key).is_none() {
                        return fail(key);
                    }
                }
            }
            "items" => {
                for inner in value.as_array().into_iter().flatten() {
                    conforms(root, rule, inner, &format!("{path}[]"))?;
                }
            }
            "enum" if !rule.as_array().is_some_and(|all| all.contains(value)) => {
                return fail("not one of the values");
            }
            "const" if rule != value => return fail("not the value"),
            "enum" | "const" => {}
            "oneOf" if any(rule) != 1 => return fail("not exactly one of"),
            "anyOf" if any(rule) == 0 => return fail("none of"),
            "oneOf" | "anyOf" => {}
            "minimum" if number < bound => return fail("too small"),
            "maximum" if number > bound => return fail("too large"),
            "minimum" | "maximum" => {}
            other => panic!("{path}: unknown keyword {other}"),
        }
    }
    Ok(())
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}
