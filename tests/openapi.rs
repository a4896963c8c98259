//! docs/openapi.yaml says what the control API is.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use common::{Host, Stream, eventually};
use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn description() -> Value {
    serde_yaml::from_str(&read("docs/openapi.yaml")).unwrap()
}

/// `get /v1/sessions`, ...
fn described(description: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        found.extend(methods.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    found
}

/// The routes that the source has: after each `.route(` a path, and then methods with their handlers.
fn in_code() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let source = read("src/api/server.rs");
    for route in source.split(".route(").skip(1) {
        let (_, rest) = route.split_once('"').unwrap();
        let (path, rest) = rest.split_once('"').unwrap();
        let handlers = rest.split(".fallback(").next().unwrap();
        let before = found.len();
        for method in ["get", "post", "put", "delete", "patch"] {
            let named = |start: &str| handlers.contains(&format!("{start}{method}("));
            if named(" ") || named("\n            ") || named(".") || handlers.starts_with(&format!(", {method}(")) {
                found.insert(format!("{method} {path}"));
            }
        }
        assert!(found.len() > before, "{path} has no method that this test knows");
    }
    found
}

#[test]
fn every_route_and_method_is_described_and_nothing_else() {
    assert_eq!(described(&description()), in_code());
}

/// Follows a `$ref`.
fn resolve<'a>(description: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(pointer) => description.pointer(pointer.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Whether the value has exactly the fields of the schema, and each the type that it says.
fn check(description: &Value, schema: &Value, value: &Value) {
    let schema = resolve(description, schema);
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().map(|word| word.as_str().unwrap()).collect(),
        other => panic!("{other} is no type"),
    };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.contains(&found), "{value} is none of {types:?}");
    if let Value::Array(items) = value {
        for item in items {
            check(description, &schema["items"], item);
        }
    }
    // One without properties has names that are anybody's.
    if let (Value::Object(fields), Some(properties)) = (value, schema["properties"].as_object()) {
        let properties: BTreeMap<_, _> = properties.iter().collect();
        let names: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
        let described: BTreeSet<&str> = properties.keys().map(|name| name.as_str()).collect();
        let required = schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(names, described, "{value}");
        assert_eq!(described, required, "all are always there");
        for (name, field) in fields {
            check(description, properties[name], field);
        }
    }
}

#[test]
fn what_a_server_answers_has_the_shape_that_is_described() {
    let host = Host::new().user("ada").user("bob").user("eve").config("session:\n  mode: grace-period").start();
    for user in ["bob", "eve"] {
        host.ssh(user, "true").run().ok();
    }
    host.podspawn(["stop", "eve"]).run().ok();
    let records = || host.json(["records"]);
    eventually("eve's session is gone", || records() != serde_json::json!([]));
    let gone = records()[0]["id"].as_str().unwrap().to_owned();
    let ada = Stream::start(&host, "ada+web");
    let projects = host.root.join("etc/podspawn/projects.yaml");
    fs::write(projects, "other: {repo: \"https://me:secret@example.com/other.git\"}\n").unwrap();
    let kept = host.root.join("var/lib/podspawn/cache/packages");
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join("0".repeat(64)), "").unwrap();
    let description = description();
    for route in described(&description) {
        let Some(path) = route.strip_prefix("get ") else { continue };
        let answer = &description["paths"][path]["get"]["responses"]["200"]["content"];
        let Some(schema) = answer.get("application/json").map(|content| &content["schema"]) else { continue };
        let one = path.replace("{key}", "ada@web").replace("{id}", &gone);
        let one = one.replace("{reference}", "localhost%2Fbusybox:test");
        let body = host.curl(&["-f"], &one).run().ok().text();
        let value: Value = serde_json::from_str(&body).unwrap();
        assert!(value != serde_json::json!([]), "{path} has something to show");
        check(&description, schema, &value);
    }
    let problem = host.curl(&["-X", "POST"], "/v1/sessions/eve/stop").run().ok().text();
    check(&description, &description["components"]["schemas"]["Problem"], &serde_json::from_str(&problem).unwrap());
    let down = host.curl(&["-X", "POST"], "/v1/sessions/bob/down?clean=true").run().ok().text();
    check(&description, &description["components"]["schemas"]["Down"], &serde_json::from_str(&down).unwrap());
    let key = fs::read_to_string(host.key("ada").with_extension("key.pub")).unwrap();
    let users = |arguments: &[&str], path: &str| {
        host.curl(&[&["-w", " %{http_code}"], arguments].concat(), &format!("/v1/users/{path}")).run().ok().text()
    };
    let post = |path: &str, keys: &str| {
        let body = serde_json::json!({"keys": [keys]}).to_string();
        users(&["-H", "Content-Type: application/json", "-d", &body], path)
    };
    assert_eq!(post("zoe", &key), "{\"added\":1,\"warnings\":[]} 200");
    host.ssh("zoe", "true").key(&host.key("ada")).run().ok();
    assert!(post("zoe", "nonsense").ends_with(" 400") && post("-", &key).ends_with(" 400"));
    assert!(users(&["-X", "DELETE"], "zoe").ends_with(" 409") && users(&["-X", "DELETE"], "yan").ends_with(" 404"));
    let removed = users(&["-X", "DELETE"], "zoe?force=true");
    let removed: Value = serde_json::from_str(removed.strip_suffix(" 200").unwrap()).unwrap();
    check(&description, &description["components"]["schemas"]["RemovedUser"], &removed);
    eventually("zoe's session is gone", || host.sessions().iter().all(|session| session["user"] != "zoe"));
    host.ssh("zoe", "true").key(&host.key("ada")).run().status(255);
    assert!(!host.curl(&[], "/v1/projects").run().ok().text().contains("secret"));
    assert_eq!(host.curl(&[], "/healthz").run().ok().text(), "ok\n");
    ada.finish();
}

#[test]
fn events_are_heard_as_they_happen() {
    let host = Host::new().user("ada").start();
    let mut listener = host.curl(&["-N", "--max-time", "60"], "/v1/events");
    let mut listener = listener.command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), ": listening");
    host.ssh("ada", "exit 3").run().status(3);
    let mut heard = Vec::new();
    while heard.last().is_none_or(|event: &Value| event["event"] != "container.destroy") {
        let line = lines.next().expect("the stream goes on");
        if let Some(name) = line.strip_prefix("event: ") {
            let data = lines.next().unwrap();
            let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(event["event"], name);
            heard.push(event);
        }
    }
    let logged: Vec<Value> = host.audit().into_iter().filter(|event| event["event"] != "cleanup.run").collect();
    assert_eq!(heard, logged);
    listener.kill().unwrap();
    listener.wait().unwrap();
    host.assert_no_session_left();
}
