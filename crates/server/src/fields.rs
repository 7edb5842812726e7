//! The fields of a request to make a video: names, and what each takes.

use std::fmt;

use serde_json::Value;

use crate::api::error::ApiError;

/// A field.
pub struct Field {
    pub name: &'static str,
    /// Other names of it.
    pub others: &'static [&'static str],
    takes: Kind,
}

/// A kind of value in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Truth,
    List,
    Object,
}

/// Every field.
const FIELDS: &[Field] = &[
    of("prompt", &[], Kind::Text),
    of("model", &[], Kind::Text),
    of("size", &[], Kind::Text),
    of("resolution", &[], Kind::Text),
    of("aspect_ratio", &[], Kind::Text),
    of("seconds", &[], Kind::Number),
    of("negative_prompt", &[], Kind::Text),
    of("frames", &["num_frames"], Kind::Number),
    of("fps", &[], Kind::Number),
    of("steps", &["num_inference_steps"], Kind::Number),
    of("guidance", &["guidance_scale"], Kind::Number),
    of("guidance_2", &["guidance_scale_2"], Kind::Number),
    of("true_guidance", &[], Kind::Number),
    of("dynamic_guidance", &[], Kind::Truth),
    of("shift", &["flow_shift"], Kind::Number),
    of("seed", &[], Kind::Number),
    of("solver", &[], Kind::Text),
    of("cache", &[], Kind::Text),
    of("target", &[], Kind::Text),
    of("guard", &[], Kind::Text),
    of("max_sequence_length", &[], Kind::Number),
    of("priority", &[], Kind::Number),
    of("user", &[], Kind::Text),
    of("input_reference", &[], Kind::Text),
];

const fn of(name: &'static str, others: &'static [&'static str], takes: Kind) -> Field {
    Field { name, others, takes }
}

impl Field {
    /// The field of a name, if it is known.
    pub fn named(name: &str) -> Option<&'static Field> {
        FIELDS.iter().find(|field| field.name == name || field.others.contains(&name))
    }
}

/// A value as a form has it. What is no text is taken as text where the field says so: a number that was meant for
/// another field would make a prompt. Text is taken everywhere, as forms and OpenAI's `seconds` have numbers.
///
/// # Errors
/// A known field takes another kind of value.
pub fn text_of(name: &str, value: Value) -> Result<String, ApiError> {
    let found = Kind::of(&value);
    match (Field::named(name), value) {
        (_, Value::String(text)) => Ok(text),
        (Some(field), _) if field.takes != found => {
            Err(ApiError::field(name, &format!("expected {}, found {found}", field.takes)))
        }
        (_, value) => Ok(value.to_string()),
    }
}

impl Kind {
    fn of(value: &Value) -> Self {
        match value {
            Value::Number(_) => Kind::Number,
            Value::Bool(_) => Kind::Truth,
            Value::Array(_) => Kind::List,
            Value::Object(_) => Kind::Object,
            Value::String(_) | Value::Null => Kind::Text,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Text => "text",
            Kind::Number => "a number",
            Kind::Truth => "true or false",
            Kind::List => "a list",
            Kind::Object => "an object",
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_kind_of_value_is_refused_with_both_named() {
        for (name, value, says) in [
            ("prompt", json!(5), "`prompt`: expected text, found a number"),
            ("negative_prompt", json!(true), "`negative_prompt`: expected text, found true or false"),
            ("model", json!(["demo"]), "`model`: expected text, found a list"),
            ("cache", json!({"method": "stride"}), "`cache`: expected text, found an object"),
            ("num_inference_steps", json!(true), "`num_inference_steps`: expected a number, found true or false"),
            ("seed", json!([7]), "`seed`: expected a number, found a list"),
            ("dynamic_guidance", json!(1), "`dynamic_guidance`: expected true or false, found a number"),
        ] {
            let error = text_of(name, value).unwrap_err();
            assert_eq!((error.message.as_str(), error.param.as_deref()), (says, Some(name)));
        }
        for (name, value, text) in [
            ("prompt", json!("5"), "5"),
            ("seconds", json!("4"), "4"),
            ("seconds", json!(2.5), "2.5"),
            ("dynamic_guidance", json!(true), "true"),
            ("new", json!({"a": 1}), "{\"a\":1}"),
        ] {
            assert_eq!(text_of(name, value).unwrap(), text, "{name}");
        }
    }

    #[test]
    fn what_the_interface_says_is_what_is_taken() {
        let told: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let fields_of = |path: &str| {
            let body = &told["paths"][path]["post"]["requestBody"]["content"]["application/json"];
            body["schema"]["properties"].clone()
        };
        for path in ["/v1/videos", "/v1/estimate"] {
            let fields = fields_of(path);
            // A picture may be an object too.
            for field in FIELDS.iter().filter(|field| field.name != "input_reference") {
                let said = &fields[field.name]["type"];
                let says = |kind: &str| said.to_string().contains(kind);
                let agrees = match field.takes {
                    Kind::Text => *said == "string",
                    Kind::Truth => says("boolean") && says("string"),
                    _ => (says("number") || says("integer")) && says("string"),
                };
                assert!(agrees, "{path} {}: {said}", field.name);
                assert_eq!(*said, fields_of("/v1/videos")[field.name]["type"], "the same on both: {}", field.name);
            }
        }
    }
}
