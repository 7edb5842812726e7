//! What a convolution is, whatever computes it.

/// What a kernel sees beyond the edge of a frame, and before the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// Nothing.
    Zeros,
    /// The nearest pixel, and the first frame.
    Repeated,
}

/// How an output's height and width follow from the input's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// They are the same: the kernel is odd, and centred.
    Same,
    /// Every pixel becomes four of its kind before the kernel sees them.
    Doubled,
    /// Outputs stand at every second pixel, which is the first that the kernel sees.
    Halved,
}

/// What does not change from clip to clip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) time: usize,
    pub(super) size: usize,
    pub(super) edge: Edge,
    pub(super) resize: Resize,
}

impl Shape {
    /// An output's height or width.
    pub(super) fn length(self, input: usize) -> usize {
        match self.resize {
            Resize::Same => input,
            Resize::Doubled => 2 * input,
            Resize::Halved => input.div_ceil(2),
        }
    }

    /// The row of the input that a row of the kernel sees, and the same of columns; nothing where there are zeros.
    #[inline(always)]
    pub(super) fn source(self, output: usize, tap: usize, input: usize) -> Option<usize> {
        let (place, end) = match self.resize {
            Resize::Same => ((output + tap) as isize - (self.size / 2) as isize, input),
            Resize::Doubled => ((output + tap) as isize - (self.size / 2) as isize, 2 * input),
            Resize::Halved => ((2 * output + tap) as isize, input),
        };
        let place = match self.edge {
            Edge::Zeros => usize::try_from(place).ok().filter(|&place| place < end)?,
            Edge::Repeated => place.clamp(0, end as isize - 1) as usize,
        };
        Some(if self.resize == Resize::Doubled { place / 2 } else { place })
    }

    pub(super) fn form(self) -> Form {
        match self.resize {
            Resize::Same if self.size == 3 => Form::Winograd { across: 4 },
            Resize::Doubled if self.size == 3 => Form::Winograd { across: 3 },
            _ => Form::Columns,
        }
    }

    /// Depth of the products for each tap and input.
    pub(super) fn depth(self) -> usize {
        match self.form() {
            Form::Columns => self.size * self.size,
            Form::Winograd { .. } => 1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One product in one pass.
    Columns,
    /// As many products, and as many passes.
    Winograd { across: usize },
}
