//! The body of a request to make a video, multipart or JSON, as fields of text and a picture. Everything is counted
//! before it is kept.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use base64::Engine;
use multer::{Constraints, Multipart, SizeLimit};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::bodies::{BESIDE, most_of_body};
use crate::fields;

/// Most parts of a body.
const PARTS: usize = 32;
/// Longest name of a field.
const NAME: usize = 64;
/// Longest text of a field.
const TEXT: u64 = 64 << 10;
/// How deep JSON may be.
const DEPTH: usize = 16;
/// The field of the picture.
const PICTURE: &str = "input_reference";

/// What a form says.
#[derive(Debug, Default, PartialEq)]
pub struct Form {
    /// Text by the name of its field.
    pub fields: BTreeMap<String, String>,
    pub picture: Option<Bytes>,
}

/// How a body is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// With this boundary.
    Multipart(String),
    Json,
}

impl Content {
    /// What a content type says; `None` is refused.
    pub fn of(content_type: &str) -> Option<Self> {
        if let Ok(boundary) = multer::parse_boundary(content_type) {
            return (boundary.len() <= 70).then_some(Content::Multipart(boundary)); // RFC 2046, 5.1.1
        }
        let media = content_type.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case("application/json").then_some(Content::Json)
    }
}

/// Reads a body. `most`: bytes of the picture.
pub async fn read(content: Content, body: Body, most: u64) -> Result<Form, ApiError> {
    match content {
        Content::Multipart(boundary) => read_multipart(boundary, body, most).await,
        Content::Json => {
            let limit = most_of_body(most);
            let bytes = axum::body::to_bytes(body, usize::try_from(limit).unwrap_or(usize::MAX)).await;
            let bytes = bytes.map_err(|_| ApiError::too_large(limit))?;
            read_json(&bytes, most)
        }
    }
}

async fn read_multipart(boundary: String, body: Body, most: u64) -> Result<Form, ApiError> {
    let limits = SizeLimit::new().whole_stream(most.saturating_add(BESIDE)).per_field(TEXT).for_field(PICTURE, most);
    let constraints = Constraints::new().size_limit(limits);
    let mut parts = Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
    let mut form = Form::default();
    let mut count = 0;
    while let Some(part) = parts.next_field().await.map_err(of_multipart)? {
        count += 1;
        if count > PARTS {
            return Err(ApiError::bad("too_many_parts", format!("expected at most {PARTS} parts")));
        }
        let name = part.name().unwrap_or_default().to_string();
        check_name(&name)?;
        if name == PICTURE && (part.file_name().is_some() || part.content_type().is_some()) {
            let bytes = part.bytes().await.map_err(of_multipart)?;
            form.put_picture(bytes)?;
        } else {
            let bytes = part.bytes().await.map_err(of_multipart)?;
            let text = String::from_utf8(bytes.to_vec());
            let text = text.map_err(|_| ApiError::field(&name, "expected text in UTF-8"))?;
            form.put(name, text, most)?;
        }
    }
    Ok(form)
}

fn of_multipart(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamSizeExceeded { limit } | multer::Error::FieldSizeExceeded { limit, .. } => {
            ApiError::too_large(limit)
        }
        error => ApiError::bad("bad_form", format!("this is no multipart form: {error}")),
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    match name.len() {
        1..=NAME if !name.chars().any(char::is_control) => Ok(()),
        _ => Err(ApiError::bad("bad_form", format!("expected a field's name of 1 to {NAME} letters"))),
    }
}

/// Reads JSON. An object `extra_body` is merged.
pub fn read_json(bytes: &[u8], most: u64) -> Result<Form, ApiError> {
    let wrong = |reason: String| ApiError::bad("bad_json", format!("this is no JSON object: {reason}"));
    let value: Value = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    if depth(&value) > DEPTH {
        return Err(wrong(format!("expected at most {DEPTH} levels")));
    }
    let Value::Object(fields) = value else { return Err(wrong("expected {...}".to_string())) };
    let mut form = Form::default();
    for (name, value) in fields {
        match value {
            Value::Object(more) if name == "extra_body" => {
                for (name, value) in more {
                    form.put_json(name, value, most)?;
                }
            }
            value => form.put_json(name, value, most)?,
        }
    }
    Ok(form)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

impl Form {
    fn put_json(&mut self, name: String, value: Value, most: u64) -> Result<(), ApiError> {
        check_name(&name)?;
        let text = match value {
            Value::Null => return Ok(()),
            Value::Object(mut fields) if name == PICTURE => match fields.remove("image_url") {
                Some(Value::String(url)) => url,
                _ => return Err(ApiError::field(PICTURE, "expected {\"image_url\": \"data:image/png;base64,...\"}")),
            },
            value => fields::text_of(&name, value)?,
        };
        if name != PICTURE && text.len() as u64 > TEXT {
            return Err(ApiError::field(&name, &format!("expected at most {TEXT} bytes of text")));
        }
        self.put(name, text, most)
    }

    /// Puts a field. The picture may come as a data URL; no other URL is opened.
    fn put(&mut self, name: String, text: String, most: u64) -> Result<(), ApiError> {
        if name == PICTURE {
            return self.put_picture(picture_of(&text, most)?);
        }
        match self.fields.insert(name.clone(), text) {
            None => Ok(()),
            Some(_) => Err(ApiError::field(&name, "is given twice")),
        }
    }

    fn put_picture(&mut self, bytes: Bytes) -> Result<(), ApiError> {
        match self.picture.replace(bytes) {
            None => Ok(()),
            Some(_) => Err(ApiError::field(PICTURE, "expected one picture, found two")),
        }
    }
}

fn picture_of(text: &str, most: u64) -> Result<Bytes, ApiError> {
    let Some(data) = text.strip_prefix("data:") else {
        let mut error = ApiError::field(PICTURE, "this server opens no URL: send the picture itself, or a data: URL");
        error.code = "url_not_supported";
        return Err(error);
    };
    let encoded = data.split_once(";base64,").map(|(_, encoded)| encoded);
    let bytes = encoded.and_then(|encoded| base64::engine::general_purpose::STANDARD.decode(encoded).ok());
    let bytes = bytes.ok_or_else(|| ApiError::field(PICTURE, "expected data:image/png;base64,..."))?;
    if bytes.len() as u64 > most {
        return Err(ApiError::too_large(most));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 1000;

    async fn multipart(body: impl Into<Body>) -> Result<Form, ApiError> {
        read(Content::Multipart("XX".to_string()), body.into(), MOST).await
    }

    fn part(head: &str, body: &str) -> String {
        format!("--XX\r\nContent-Disposition: form-data; {head}\r\n\r\n{body}\r\n")
    }

    #[tokio::test]
    async fn both_kinds_say_the_same() {
        let body = part("name=\"prompt\"", "a cat") + &part("name=\"steps\"", "7") + "--XX--\r\n";
        let json = br#"{"prompt": "a cat", "extra_body": {"steps": 7}, "size": null}"#;
        let form = multipart(body).await.unwrap();
        assert_eq!(form, read_json(json, MOST).unwrap());
        assert_eq!(form.fields["steps"], "7");

        let body = part("name=\"input_reference\"; filename=\"../../x\"", "abc") + "--XX--\r\n";
        let json = br#"{"input_reference": {"image_url": "data:image/png;base64,YWJj"}}"#;
        let form = multipart(body).await.unwrap();
        assert_eq!(form, read_json(json, MOST).unwrap());
        assert_eq!(form.picture.as_deref(), Some(&b"abc"[..]));
    }

    #[tokio::test]
    async fn bodies_that_mean_harm_are_refused() {
        let many: String = (0..100).map(|i| part(&format!("name=\"f{i}\""), "x")).collect();
        let long_name = part(&format!("name=\"{}\"", "n".repeat(65)), "x");
        let large = part("name=\"input_reference\"; filename=\"x\"", &"x".repeat(1001)) + "--XX--\r\n";
        let twice = part("name=\"a\"", "1") + &part("name=\"a\"", "2") + "--XX--\r\n";
        let text = part("name=\"prompt\"", &"x".repeat(65 << 10)) + "--XX--\r\n";
        for (what, body, code) in [
            ("nothing", String::new(), "bad_form"),
            ("no end", part("name=\"a\"", "1"), "bad_form"),
            ("many parts", many, "too_many_parts"),
            ("a long name", long_name, "bad_form"),
            ("no name", part("filename=\"x\"", "1"), "bad_form"),
            ("a control character", part("name=\"a\0b\"", "1"), "bad_form"),
            ("a large picture", large, "too_large"),
            ("a long text", text, "too_large"),
            ("a field twice", twice, "invalid_value"),
            ("a URL", part("name=\"input_reference\"", "http://169.254.169.254/") + "--XX--\r\n", "url_not_supported"),
            ("a path", part("name=\"input_reference\"", "/etc/passwd") + "--XX--\r\n", "url_not_supported"),
        ] {
            let error = multipart(body).await.expect_err(what);
            assert_eq!(error.code, code, "{what}");
        }
        let invalid =
            [&b"--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\xff\xfe\r\n--XX--\r\n"[..]].concat();
        assert_eq!(multipart(invalid).await.unwrap_err().param.as_deref(), Some("a"));
    }

    #[test]
    fn json_that_means_harm_is_refused() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let nested = format!("{{\"a\": {}{}}}", "[".repeat(17), "]".repeat(17));
        let number = format!("{{\"seed\": {}}}", "9".repeat(1_000_000));
        for json in ["", "[]", "7", "{\"a\"", "\u{feff}{}", &deep, &nested, &number] {
            let error = read_json(json.as_bytes(), MOST).unwrap_err();
            assert!(
                ["bad_json", "invalid_value"].contains(&error.code),
                "{}: {}",
                &json[..json.len().min(20)],
                error.code
            );
        }
        assert_eq!(read_json(b"{\"prompt\": \"\xff\"}", MOST).unwrap_err().code, "bad_json");
    }

    #[test]
    fn a_body_has_room_for_its_picture() {
        let encoded = |bytes: usize| base64::engine::general_purpose::STANDARD.encode(vec![0; bytes]).len() as u64;
        for bytes in [0, 1, 2, 3, 1000] {
            assert_eq!(most_of_body(bytes), encoded(bytes as usize) + BESIDE);
        }
        assert_eq!(most_of_body(u64::MAX), u64::MAX);
    }

    #[test]
    fn content_types() {
        assert_eq!(Content::of("multipart/form-data; boundary=XX"), Some(Content::Multipart("XX".to_string())));
        assert_eq!(Content::of("application/json; charset=utf-8"), Some(Content::Json));
        for wrong in ["", "text/plain", "multipart/form-data", "multipart/mixed; boundary=XX", "application/jsonp"] {
            assert_eq!(Content::of(wrong), None, "{wrong}");
        }
        assert_eq!(Content::of(&format!("multipart/form-data; boundary={}", "x".repeat(200))), None);
    }
}
