//! Polynomials through values at any points, as weights.

/// Values at `points` weighted to the value at `x` of the polynomial through them. The weights sum to 1.
pub fn lagrange(points: &[f64], x: f64) -> Vec<f64> {
    let weight = |(i, p): (usize, &f64)| {
        points.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, q)| (x - q) / (p - q)).product()
    };
    points.iter().enumerate().map(weight).collect()
}
