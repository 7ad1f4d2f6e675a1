//! Going through a tree.

use super::{
    Ast, DurationArg, DurationExpr, DurationId, DurationKind, DurationNode, Expr, ExprId, ExprRef, Span,
};

impl Expr {
    /// The expressions directly below, in Prometheus' order: an aggregation's vector comes before its parameter.
    pub fn children(&self) -> impl Iterator<Item = ExprId> {
        (0..).map_while(|i| self.child(i))
    }

    /// The expression directly below that is number `i` in Prometheus' order.
    pub(crate) fn child(&self, i: usize) -> Option<ExprId> {
        let (first, second) = match self {
            Self::Aggregate(e) => (e.expr, e.param),
            Self::Binary(e) => (e.lhs, Some(e.rhs)),
            Self::Call(e) => return e.args.get(i).copied(),
            Self::Paren(e) => (e.expr, None),
            Self::Subquery(e) => (e.expr, None),
            Self::Unary(e) => (e.expr, None),
            Self::Matrix(_) | Self::Number(_) | Self::String(_) | Self::Vector(_) => return None,
        };
        match i {
            0 => Some(first),
            1 => second,
            _ => None,
        }
    }

    /// The same in the order of the text: an aggregation's parameter comes before its vector.
    pub(crate) fn written(&self, i: usize) -> Option<ExprId> {
        match (self, i) {
            (Self::Aggregate(e), 0) => e.param.or(Some(e.expr)),
            (Self::Aggregate(e), 1) => e.param.map(|_| e.expr),
            _ => self.child(i),
        }
    }

    /// A copy whose children stand elsewhere: `moved` says where, of where they stand now.
    pub(super) fn with_children(&self, moved: impl Fn(usize) -> usize) -> Self {
        let moved = |id: &mut ExprId| *id = ExprId::at(moved(id.place()));
        let mut copy = self.clone();
        match &mut copy {
            Self::Aggregate(e) => {
                moved(&mut e.expr);
                e.param.iter_mut().for_each(moved);
            }
            Self::Binary(e) => {
                moved(&mut e.lhs);
                moved(&mut e.rhs);
            }
            Self::Call(e) => e.args.iter_mut().for_each(moved),
            Self::Paren(e) => moved(&mut e.expr),
            Self::Subquery(e) => moved(&mut e.expr),
            Self::Unary(e) => moved(&mut e.expr),
            Self::Matrix(_) | Self::Number(_) | Self::String(_) | Self::Vector(_) => {}
        }
        copy
    }

    fn clear_spans(&mut self) {
        let span = match self {
            Self::Aggregate(e) => &mut e.span,
            Self::Binary(e) => {
                e.op_span = Span::default();
                &mut e.span
            }
            Self::Call(e) => &mut e.span,
            Self::Matrix(e) => {
                e.selector.span = Span::default();
                e.range.clear_spans();
                e.selector.offset.clear_spans();
                &mut e.span
            }
            Self::Number(e) => &mut e.span,
            Self::Paren(e) => &mut e.span,
            Self::String(e) => &mut e.span,
            Self::Subquery(e) => {
                e.range.clear_spans();
                e.offset.clear_spans();
                e.step.iter_mut().for_each(DurationArg::clear_spans);
                &mut e.span
            }
            Self::Unary(e) => &mut e.span,
            Self::Vector(e) => {
                e.offset.clear_spans();
                &mut e.span
            }
        };
        *span = Span::default();
    }
}

impl Ast {
    /// Forgets where expressions came from, so that two trees can be compared by meaning.
    pub fn clear_spans(&mut self) {
        self.exprs_mut().for_each(Expr::clear_spans);
    }
}

impl DurationExpr {
    /// Goes through the expression: comes by each part before the first one directly below it and after each of these.
    /// Gives how many of them are done, too, and whether these are all.
    pub fn walk(&self) -> impl Iterator<Item = (&DurationNode, usize, bool)> {
        let mut way = Way::from(self.nodes.len().saturating_sub(1));
        std::iter::from_fn(move || {
            let child = |place: usize, i| Some(self.nodes.get(place)?.kind.child(i)?.0);
            let (place, done, last) = way.next(child)?;
            Some((self.nodes.get(place)?, done, last))
        })
    }

    /// Whether a part is a number.
    pub fn is_number(&self, id: DurationId) -> bool {
        let node = self.nodes.get(id.0);
        node.is_some_and(|node| matches!(node.kind, DurationKind::Number(_)))
    }
}

impl DurationArg {
    fn clear_spans(&mut self) {
        if let Self::Expr(DurationExpr { nodes }) = self {
            nodes.iter_mut().for_each(DurationNode::clear_spans);
        }
    }
}

impl DurationNode {
    fn clear_spans(&mut self) {
        self.span = Span::default();
        if let DurationKind::Number(number) = &mut self.kind {
            number.span = Span::default();
        }
    }
}

/// The way through a tree whose nodes are known by their places: it comes by each node before its first child, and after
/// each child. What is under way lies in a list instead of on the stack.
#[derive(Debug)]
pub(crate) struct Way {
    /// The nodes around where it is, each with how many of its children are done.
    open: Vec<(usize, usize)>,
}

impl Way {
    /// Begins at a node.
    pub(crate) fn from(place: usize) -> Self {
        let mut open = Vec::with_capacity(8);
        open.push((place, 0));
        Self { open }
    }

    /// The next node it comes by, how many of its children are done, and whether these are all; `child` gives the child
    /// of a number.
    pub(crate) fn next(
        &mut self,
        child: impl FnOnce(usize, usize) -> Option<usize>,
    ) -> Option<(usize, usize, bool)> {
        let (place, done) = self.open.last_mut()?;
        let at = (*place, *done);
        *done += 1;
        let next = child(at.0, at.1);
        match next {
            Some(child) => self.open.push((child, 0)),
            None => _ = self.open.pop(),
        }
        Some((at.0, at.1, next.is_none()))
    }
}

impl<'a> ExprRef<'a> {
    /// Goes through the expression and all below it in Prometheus' order: comes by each before its first child and after
    /// each child. Gives how many children are done, too.
    pub fn walk(self) -> impl Iterator<Item = (Self, usize)> {
        self.walk_by(Expr::child)
    }

    /// The same in the order of the text.
    pub(crate) fn walk_written(self) -> impl Iterator<Item = (Self, usize)> {
        self.walk_by(Expr::written)
    }

    fn walk_by(self, child: fn(&Expr, usize) -> Option<ExprId>) -> impl Iterator<Item = (Self, usize)> {
        let mut way = Way::from(self.id().place());
        std::iter::from_fn(move || {
            let child = |place, i| child(self.at(ExprId::at(place)).expr(), i).map(ExprId::place);
            let (place, done, _) = way.next(child)?;
            Some((self.at(ExprId::at(place)), done))
        })
    }
}
