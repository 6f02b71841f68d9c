//! What a share that was seen says of the share that there is.

/// Quantile 0.975 of the normal distribution: 95 % lie within, on both sides.
const Z: f64 = 1.959_963_984_540_054;

/// Between which bounds a share lies, with 95 % confidence.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Interval {
    /// It is hardly less.
    pub lower: f64,
    /// It is hardly more.
    pub upper: f64,
}

/// The score interval of E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
/// American Statistical Association 22 (1927), 209-212. Unlike the textbook's it holds near 0 and with few samples. Without
/// any it is everything.
///
/// It takes samples for independent of each other. Errors that come in bursts are not, and make it too narrow.
#[must_use]
pub fn wilson(hits: u64, samples: u64) -> Interval {
    if samples == 0 {
        return Interval { lower: 0., upper: 1. };
    }
    let n = samples as f64;
    let share = hits.min(samples) as f64 / n;
    let square = Z * Z;
    let centre = share + square / (2. * n);
    let half = Z * (share * (1. - share) / n + square / (4. * n * n)).sqrt();
    let scale = 1. + square / n;
    Interval { lower: ((centre - half) / scale).max(0.), upper: ((centre + half) / scale).min(1.) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// By its definition instead of its formula: the rates `p` of which the share seen is within `Z` standard errors
    /// `sqrt(p (1 - p) / n)`, found by halving.
    #[rstest]
    #[case(0, 0, 0., 1.)]
    #[case(0, 10, 0., 0.277_533)]
    #[case(1, 10, 0.017_876, 0.404_150)]
    #[case(5, 10, 0.236_593, 0.763_407)]
    #[case(10, 10, 0.722_467, 1.)]
    #[case(0, 500, 0., 0.007_624)]
    #[case(10, 500, 0.010_899, 0.036_420)]
    fn it_is_wilsons(#[case] hits: u64, #[case] samples: u64, #[case] lower: f64, #[case] upper: f64) {
        let interval = wilson(hits, samples);
        assert!((interval.lower - lower).abs() < 2e-6 && (interval.upper - upper).abs() < 2e-6, "{interval:?}");
    }
}
