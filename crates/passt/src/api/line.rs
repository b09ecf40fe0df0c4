//! Requests, answers and events as lines of JSON.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// A request.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    /// The client's own ID, which the answer repeats: a string, a number, or null.
    pub(super) id: Value,
    /// The name of the request.
    pub(super) name: String,
    /// The arguments. An object.
    pub(super) arguments: Value,
}

/// The reason why a request has no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The kind of the failure, for programs.
    pub(super) code: &'static str,
    /// The message for people.
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The result of a request as JSON, or the reason why there is none.
pub(super) type Outcome = Result<String, Failure>;

impl Request {
    /// Parses a line.
    ///
    /// # Errors
    /// The ID of the request, as far as it is known, and what is wrong with it.
    pub(super) fn parse(line: &[u8]) -> Result<Self, (Value, Failure)> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| (Value::Null, Failure::new("invalid-json", error.to_string())))?;
        let wrong = |id, message: &str| (id, Failure::new("invalid-request", message));
        let Value::Object(mut object) = value else {
            return Err(wrong(Value::Null, "a request is an object"));
        };
        let id = object.remove("id").unwrap_or(Value::Null);
        if !matches!(id, Value::Null | Value::Number(_) | Value::String(_)) {
            return Err(wrong(Value::Null, "\"id\" is a string or a number"));
        }
        let Some(Value::String(name)) = object.remove("request") else {
            return Err(wrong(id, "\"request\" is missing: the name of the request, a string"));
        };
        let arguments = match object.remove("arguments") {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(arguments @ Value::Object(_)) => arguments,
            Some(_) => return Err(wrong(id, "\"arguments\" is an object")),
        };
        match object.keys().next() {
            Some(key) => Err(wrong(id, &format!("{key:?} is unknown; use id, request and arguments"))),
            None => Ok(Self { id, name, arguments }),
        }
    }

    /// The arguments as a type.
    ///
    /// # Errors
    /// An argument is unknown, missing, or has another type.
    pub(super) fn arguments<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        T::deserialize(&self.arguments)
            .map_err(|error| Failure::new("invalid-arguments", format!("{}: {error}", self.name)))
    }
}

/// The line of an answer.
pub(super) fn answer(id: &Value, outcome: &Outcome) -> String {
    match outcome {
        Ok(result) => format!("{{\"id\":{id},\"result\":{result}}}\n"),
        Err(Failure { code, message }) => {
            format!("{}\n", json!({ "id": id, "error": { "code": code, "message": message } }))
        }
    }
}

/// The line that reports lost events.
pub(super) fn lost(count: u64) -> String {
    format!("{}\n", json!({ "event": "lost", "count": count }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let parse = |line: &str| Request::parse(line.as_bytes());
        let request = parse(r#"{"id":7,"request":"flows","arguments":{"port":443}}"#).unwrap();
        assert_eq!((request.id, &request.name[..]), (json!(7), "flows"));
        assert_eq!(request.arguments, json!({ "port": 443 }));
        let request = parse(r#" {"request":"stats","arguments":null} "#).unwrap();
        assert_eq!((request.id, request.arguments), (Value::Null, json!({})));

        for (line, id, code) in [
            ("", Value::Null, "invalid-json"),
            ("{", Value::Null, "invalid-json"),
            ("\u{0}", Value::Null, "invalid-json"),
            ("[]", Value::Null, "invalid-request"),
            ("{}", Value::Null, "invalid-request"),
            (r#"{"id":"a"}"#, json!("a"), "invalid-request"),
            (r#"{"id":{},"request":"stats"}"#, Value::Null, "invalid-request"),
            (r#"{"id":1,"request":"stats","arguments":[]}"#, json!(1), "invalid-request"),
            (r#"{"id":1,"request":"stats","argument":{}}"#, json!(1), "invalid-request"),
            (r#"{"id":1,"request":7}"#, json!(1), "invalid-request"),
        ] {
            let (known, failure) = parse(line).unwrap_err();
            assert_eq!((known, failure.code), (id, code), "{line}");
        }
        let deep = "[".repeat(60_000);
        assert_eq!(Request::parse(deep.as_bytes()).unwrap_err().1.code, "invalid-json");
        assert_eq!(Request::parse(b"{\"request\":\"\xff\"}").unwrap_err().1.code, "invalid-json");
    }

    #[test]
    fn answers_repeat_the_id() {
        assert_eq!(answer(&json!("a\n"), &Ok("[1]".into())), "{\"id\":\"a\\n\",\"result\":[1]}\n");
        let failure = Failure::new("refused", "no \"port\"");
        let line: Value = serde_json::from_str(&answer(&json!(1.5), &Err(failure))).unwrap();
        assert_eq!(line, json!({ "id": 1.5, "error": { "code": "refused", "message": "no \"port\"" } }));
        assert_eq!(lost(3), "{\"count\":3,\"event\":\"lost\"}\n");
    }
}
