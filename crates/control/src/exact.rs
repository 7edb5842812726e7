//! Numbers in text, exactly: their bits in 16 hexadecimal digits. JSON has no NaN and no infinity, and its readers may
//! round.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// For `#[serde(with = "crate::exact")]`.
pub(crate) fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{:016x}", number.to_bits()))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let text = String::deserialize(from)?;
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bits = u64::from_str_radix(&text, 16).ok().filter(|_| is_hex);
    let wrong = || D::Error::custom(format!("{text:?}: expected the 16 hexadecimal digits of a number"));
    bits.map(f64::from_bits).ok_or_else(wrong)
}

/// A number that is written so.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Exact(#[serde(with = "self")] f64);

/// Something that ends in a number.
pub(crate) trait Ends: Sized {
    /// The same with the number written exactly.
    type Written: Serialize + DeserializeOwned;

    fn written(&self) -> Self::Written;
    fn read(written: Self::Written) -> Self;
}

impl Ends for f64 {
    type Written = Exact;

    fn written(&self) -> Exact {
        Exact(*self)
    }

    fn read(Exact(number): Exact) -> Self {
        number
    }
}

impl<A: Clone + Serialize + DeserializeOwned> Ends for (A, f64) {
    type Written = (A, Exact);

    fn written(&self) -> Self::Written {
        (self.0.clone(), Exact(self.1))
    }

    fn read((a, Exact(number)): Self::Written) -> Self {
        (a, number)
    }
}

impl<A, B> Ends for (A, B, f64)
where
    A: Clone + Serialize + DeserializeOwned,
    B: Clone + Serialize + DeserializeOwned,
{
    type Written = (A, B, Exact);

    fn written(&self) -> Self::Written {
        (self.0.clone(), self.1.clone(), Exact(self.2))
    }

    fn read((a, b, Exact(number)): Self::Written) -> Self {
        (a, b, number)
    }
}

/// The same of lists, for `#[serde(with = "crate::exact::list")]`.
pub(crate) mod list {
    use super::{Deserialize, Deserializer, Ends, Serializer};

    pub(crate) fn serialize<T: Ends, S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(Ends::written))
    }

    pub(crate) fn deserialize<'de, T: Ends, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
        Ok(Vec::<T::Written>::deserialize(from)?.into_iter().map(T::read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back_in_every_bit() {
        let nan = f64::from_bits(0x7ff8_0000_0000_beef);
        for number in [0.0, -0.0, 0.1, 1.0 / 3.0, f64::MIN_POSITIVE / 8.0, f64::MAX, f64::INFINITY, nan] {
            let text = serde_json::to_string(&Exact(number)).unwrap();
            assert_eq!(text.len(), 18, "{text}");
            let Exact(back) = serde_json::from_str(&text).unwrap();
            assert_eq!(back.to_bits(), number.to_bits());
        }
        for wrong in ["\"3ff000000000000\"", "\"+ff0000000000000\"", "\"3ff00000000000zz\"", "1.0", "null"] {
            assert!(serde_json::from_str::<Exact>(wrong).is_err(), "{wrong}");
        }
    }
}
