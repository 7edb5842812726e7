//! Rust text as tokens: as much of the language as the rules have to tell apart.

/// A piece of a source file. Lines count from 1.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// An identifier, a keyword or a number.
    Word(String),
    /// Any other character of code.
    Symbol(char),
    /// The content of a string literal, escapes as they are written.
    Text { line: usize, content: String },
    /// A comment begins on this line, or goes on there.
    Comment { line: usize },
}

/// Splits a file into tokens.
pub fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, line: 1, tokens: Vec::new() };
    while lexer.at < chars.len() {
        lexer.next();
    }
    lexer.tokens
}

/// The same without what is compiled for tests only: items under `#[cfg(test)]`.
pub fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let marker: Vec<Token> = self::tokens("#[cfg(test)]");
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&marker) {
            at = end_of_item(tokens, at + marker.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Where the item that begins at a token ends: after its `;`, or after its block.
fn end_of_item(tokens: &[Token], begin: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(begin) {
        match token {
            Token::Symbol('{' | '(' | '[') => depth += 1,
            Token::Symbol('}') if depth == 1 => return i + 1,
            Token::Symbol('}' | ')' | ']') => depth -= 1,
            Token::Symbol(';') if depth == 0 => return i + 1,
            _ => {}
        }
    }
    tokens.len()
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    line: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn bump(&mut self) -> char {
        let char = self.peek(0);
        self.at += 1;
        if char == '\n' {
            self.line += 1;
        }
        char
    }

    fn next(&mut self) {
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => {
                self.tokens.push(Token::Comment { line: self.line });
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.bump();
                }
            }
            ('/', '*') => self.block_comment(),
            ('"', _) => self.text(),
            ('\'', _) => self.quote(),
            (char, _) if char.is_alphabetic() || char == '_' || char.is_ascii_digit() => self.word(),
            (char, _) => {
                if !char.is_whitespace() {
                    self.tokens.push(Token::Symbol(char));
                }
                self.bump();
            }
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        self.tokens.push(Token::Comment { line: self.line });
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                ('\n', _) => {
                    self.bump();
                    self.tokens.push(Token::Comment { line: self.line });
                    continue;
                }
                _ => {
                    self.bump();
                    continue;
                }
            }
            self.bump();
            self.bump();
            if depth == 0 {
                break;
            }
        }
    }

    /// A character, or a lifetime.
    fn quote(&mut self) {
        self.bump();
        let is_char = self.peek(0) == '\\' || self.peek(1) == '\'';
        if !is_char {
            return; // the lifetime's name follows as a word
        }
        if self.bump() == '\\' {
            self.bump();
        }
        while self.at < self.chars.len() && self.bump() != '\'' {}
    }

    fn word(&mut self) {
        let begin = self.at;
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            self.bump();
        }
        let word: String = self.chars[begin..self.at].iter().collect();
        let is_prefix = matches!(word.as_str(), "r" | "b" | "br" | "c" | "cr");
        let hashes = (0..).take_while(|&i| self.peek(i) == '#').count();
        match self.peek(hashes) {
            '"' if is_prefix && (hashes == 0 || word.contains('r')) => {
                self.at += hashes;
                match word.contains('r') {
                    true => self.raw_text(hashes),
                    false => self.text(),
                }
            }
            _ => self.tokens.push(Token::Word(word)),
        }
    }

    /// A string with escapes.
    fn text(&mut self) {
        let line = self.line;
        self.bump();
        let mut content = String::new();
        while self.at < self.chars.len() {
            match self.bump() {
                '"' => break,
                '\\' => {
                    content.push('\\');
                    content.push(self.bump());
                }
                char => content.push(char),
            }
        }
        self.tokens.push(Token::Text { line, content });
    }

    /// A string that ends with a quote and so many `#`.
    fn raw_text(&mut self, hashes: usize) {
        let line = self.line;
        self.bump();
        let mut content = String::new();
        while self.at < self.chars.len() {
            let ends = self.peek(0) == '"' && (1..=hashes).all(|i| self.peek(i) == '#');
            let char = self.bump();
            if ends {
                self.at += hashes;
                break;
            }
            content.push(char);
        }
        self.tokens.push(Token::Text { line, content });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_comments_and_lifetimes_are_told_apart() {
        let text = "fn f<'a>(c: &'a str) { // no \"text\"\n g('\"', '\\'', b\"x\", r#\"a\"b\"#) /* \" \n */ }";
        let texts: Vec<(usize, String)> = tokens(text)
            .into_iter()
            .filter_map(|token| match token {
                Token::Text { line, content } => Some((line, content)),
                _ => None,
            })
            .collect();
        assert_eq!(texts, [(2, "x".to_string()), (2, "a\"b".to_string())]);
        let comments = tokens(text).into_iter().filter(|token| matches!(token, Token::Comment { .. })).count();
        assert_eq!(comments, 3);
    }

    #[test]
    fn tests_are_left_out() {
        let text = "use a; #[cfg(test)] mod tests { use b; fn f() { {} } } #[cfg(test)] use c; use d;";
        assert_eq!(without_tests(&tokens(text)), tokens("use a; use d;"));
    }
}
