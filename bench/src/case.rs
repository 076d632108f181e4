//! What is measured, and how.

/// Something that Croft and its peers do.
pub struct Case<'a> {
    /// What `--only` calls it.
    pub key: &'static str,
    /// A heading.
    pub title: String,
    /// What was done, for the reader.
    pub about: &'static str,
    /// What one run gives.
    pub figures: Vec<Figure>,
    /// Croft first: the others are compared with it.
    pub contestants: Vec<Contestant<'a>>,
    /// How the results are shown.
    pub layout: Layout,
    /// Where it runs.
    pub place: Place,
}

/// Where a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine.
    Here,
    /// On a KVM that is fit: this machine's, or a nested one's.
    Kvm,
    /// In a network namespace of its own.
    Namespace,
    /// In a mount namespace with control groups of one version.
    Mounts,
}

/// How results are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A table for each figure, a row for each contestant.
    Contestants,
    /// One table, a row for each figure, a column for each contestant.
    Figures,
}

/// One of the numbers that a run gives. Less is better.
#[derive(Clone, Debug)]
pub struct Figure {
    /// A heading; empty when there is only one.
    pub name: String,
    /// The unit.
    pub unit: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    /// What Croft is to reach.
    pub target: Option<Target>,
}

/// What Croft's median is to be at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This share of the contestant's with this index.
    Share(usize, f64),
    /// This.
    Value(f64),
}

/// A run: a number for each figure, or what went wrong.
pub type Run = Result<Vec<f64>, String>;

/// One that is measured.
pub struct Contestant<'a> {
    /// For the table.
    pub name: String,
    /// Whether it is one that Croft is to be ahead of.
    pub rival: bool,
    /// Does it once.
    pub run: Box<dyn Fn() -> Run + 'a>,
}

/// What the runs of a contestant gave.
#[derive(Debug, Default)]
pub struct Results {
    /// For each figure its values, in ascending order.
    pub values: Vec<Vec<f64>>,
    /// The first thing that went wrong.
    pub problem: Option<String>,
}

impl Case<'_> {
    /// Lets all contestants run in turn.
    pub fn run(&self, runs: u32) -> Vec<Results> {
        let mut results: Vec<Results> = self
            .contestants
            .iter()
            .map(|_| Results::default())
            .collect();
        for run in 1..=runs {
            for (contestant, results) in self.contestants.iter().zip(&mut results) {
                // Trying in vain again takes long, and helps nobody.
                if results.problem.is_some() {
                    continue;
                }
                match (contestant.run)() {
                    Ok(values) => {
                        let name = &contestant.name;
                        eprintln!("{}, run {run} of {runs}, {name}: {values:.3?}", self.title);
                        results.add(&values);
                    }
                    Err(problem) => {
                        eprintln!("{}: {}: {problem}", self.title, contestant.name);
                        results.problem = Some(problem);
                    }
                }
            }
        }
        results
    }
}

impl Results {
    /// Adds a run.
    pub fn add(&mut self, values: &[f64]) {
        self.values.resize_with(values.len(), Vec::new);
        for (all, value) in self.values.iter_mut().zip(values) {
            all.push(*value);
            all.sort_by(f64::total_cmp);
        }
    }

    /// The median of a figure, between the middle two when there is no
    /// middle one.
    pub fn median(&self, figure: usize) -> Option<f64> {
        let all = self.values.get(figure)?;
        let upper = all.get(all.len() / 2)?;
        let lower = all.get((all.len() - 1) / 2)?;
        Some((upper + lower) / 2.0)
    }

    /// The least and the most.
    pub fn extremes(&self, figure: usize) -> Option<(f64, f64)> {
        let all = self.values.get(figure)?;
        Some((*all.first()?, *all.last()?))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn contestants_take_turns() {
        let order = RefCell::new(String::new());
        let order_of = &order;
        let contestant = |name: &'static str| Contestant {
            name: name.to_owned(),
            rival: true,
            run: Box::new(move || {
                order_of.borrow_mut().push_str(name);
                if name == "c" {
                    return Err("lame".to_owned());
                }
                Ok(vec![order_of.borrow().len() as f64])
            }),
        };
        let case = Case {
            key: "case",
            title: "a case".to_owned(),
            about: "",
            figures: vec![],
            contestants: ["a", "b", "c"].map(contestant).into(),
            layout: Layout::Contestants,
            place: Place::Here,
        };
        let results = case.run(4);
        assert_eq!(*order.borrow(), "abcababab");
        assert_eq!(results[0].median(0), Some((4.0 + 6.0) / 2.0));
        assert_eq!(results[1].extremes(0), Some((2.0, 9.0)));
        assert_eq!(results[2].median(0), None);
        assert_eq!(results[2].problem.as_deref(), Some("lame"));
    }
}
