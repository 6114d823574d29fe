//! Median, spread and ratios of turns.

/// What some figures come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Summary {
    /// Of figures that are not none; the median of an even number is the mean of its middle two.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Self { median, least, most })
    }

    /// `median (least to most)`.
    pub fn shown(&self) -> String {
        let Self { median, least, most } = self;
        format!("{median:.2} ({least:.2} to {most:.2})")
    }
}

/// `one / other` for each turn that both have: machines drift, neighbours in a turn do not.
/// Pairs are `turn`, `figure`.
pub fn ratios(one: &[(u32, f64)], other: &[(u32, f64)]) -> Vec<f64> {
    let of_turn = |turn: u32| other.iter().find(|(other, _)| *other == turn);
    one.iter().filter_map(|(turn, figure)| Some(figure / of_turn(*turn)?.1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_no_figures() {
        let summary = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 2.0, least: 1.0, most: 3.0 });
        let summary = Summary::of(&[4.0, 1.0, 2.0, 30.0]).unwrap();
        assert_eq!(summary, Summary { median: 3.0, least: 1.0, most: 30.0 });
        assert_eq!(summary.shown(), "3.00 (1.00 to 30.00)");
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratios_are_of_the_same_turn_and_the_median_is_theirs() {
        // The machine is twice as slow in turn 1, and one way has no turn 2.
        let (one, other) = ([(0, 1.0), (1, 2.0), (2, 9.0)], [(0, 2.0), (1, 4.0)]);
        assert_eq!(ratios(&one, &other), [0.5, 0.5]);
        let medians = [3.0, 3.0].map(|figure: f64| figure / 2.0);
        assert_ne!(Summary::of(&ratios(&one, &other)).unwrap().median, medians[0]);
        assert!(ratios(&one, &[]).is_empty());
    }
}
