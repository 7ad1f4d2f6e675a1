//! The tree as a whole. Its nodes lie in one list and name each other by their place in it: nothing that goes through a
//! tree, copies it, compares it or drops it needs a stack as deep as the query is nested.

use std::ops::Index;

use super::{Expr, MatrixSelector, Span, ValueType, VectorSelector};

/// Where an expression stands in its [`Ast`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExprId(u32);

impl ExprId {
    /// Its place among the expressions of its tree.
    pub(crate) fn place(self) -> usize {
        self.0 as usize
    }

    /// The expression at a place.
    pub(crate) fn at(place: usize) -> Self {
        // A tree of more expressions than there are ids would not fit into memory.
        Self(u32::try_from(place).unwrap_or(u32::MAX))
    }
}

/// An expression in the list.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    expr: Expr,
    value_type: ValueType,
    /// The first in the list of it and all below it.
    first: ExprId,
}

/// A query as a tree of expressions.
///
/// What is below an expression stands right before it in the list, in the order of the text; the whole is the last one.
/// There is one, as the parser only gives trees that hold a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Ast {
    entries: Vec<Entry>,
}

impl Index<ExprId> for Ast {
    type Output = Expr;

    /// # Panics
    /// If the id is another tree's, and beyond this one.
    fn index(&self, id: ExprId) -> &Expr {
        &self.entries[id.place()].expr
    }
}

impl Ast {
    /// To which expressions are to be added, about as many as `count`.
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self {
            entries: Vec::with_capacity(count),
        }
    }

    /// The whole query.
    pub fn root(&self) -> ExprRef<'_> {
        self.at(ExprId::at(self.entries.len().saturating_sub(1)))
    }

    /// One of its expressions.
    pub fn at(&self, id: ExprId) -> ExprRef<'_> {
        ExprRef { ast: self, id }
    }

    /// What the query evaluates to.
    pub fn value_type(&self) -> ValueType {
        self.root().value_type()
    }

    /// The bytes the query came from.
    pub fn span(&self) -> Span {
        self.root().expr().span()
    }

    /// How many expressions there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All expressions in the order of the text, each after those below it.
    pub fn exprs(&self) -> impl DoubleEndedIterator<Item = &Expr> {
        self.entries.iter().map(|entry| &entry.expr)
    }

    /// The same, to change what they say, but neither their kind nor what is below them.
    pub fn exprs_mut(&mut self) -> impl Iterator<Item = &mut Expr> {
        self.entries.iter_mut().map(|entry| &mut entry.expr)
    }

    /// An expression, to change what it says, but neither its kind nor what is below it.
    pub fn expr_mut(&mut self, id: ExprId) -> &mut Expr {
        &mut self.entries[id.place()].expr
    }

    /// All selectors from left to right, each with the range selector it belongs to.
    pub fn selectors(&self) -> Vec<(&VectorSelector, Option<&MatrixSelector>)> {
        let selectors = self.exprs().filter_map(|expr| match expr {
            Expr::Vector(selector) => Some((selector.as_ref(), None)),
            Expr::Matrix(matrix) => Some((&matrix.selector, Some(matrix.as_ref()))),
            _ => None,
        });
        selectors.collect()
    }

    /// The tree with another one in the place of one of its expressions.
    #[must_use]
    pub fn with(&self, id: ExprId, other: &Self) -> Self {
        let replaced = self.entries[id.place()].first.place()..id.place() + 1;
        let mut out = Self::with_capacity(self.len());
        for (at, entry) in self.entries.iter().enumerate() {
            if at == id.place() {
                out.append(other);
            }
            if !replaced.contains(&at) {
                let moved = |child: usize| match child {
                    before if before < replaced.start => before,
                    // Of what is replaced, others only refer to the last one, which the other tree's last one stands for.
                    after => after + other.len() - replaced.len(),
                };
                out.push(entry.expr.with_children(moved));
            }
        }
        out
    }

    /// Adds all expressions of another tree.
    fn append(&mut self, other: &Self) {
        let before = self.len();
        for entry in &other.entries {
            self.push(entry.expr.with_children(|child| before + child));
        }
    }

    /// Adds an expression, right after those below it.
    pub fn push(&mut self, expr: Expr) -> ExprId {
        let id = ExprId::at(self.len());
        let first = expr
            .written(0)
            .map_or(id, |child| self.entries[child.place()].first);
        self.entries.push(Entry {
            value_type: self.value_type_of(&expr),
            expr,
            first,
        });
        id
    }

    /// Takes back the expression that was added last.
    pub(crate) fn pop(&mut self) -> Option<Expr> {
        self.entries.pop().map(|entry| entry.expr)
    }

    fn value_type_of(&self, expr: &Expr) -> ValueType {
        let of = |id: ExprId| self.entries[id.place()].value_type;
        match expr {
            Expr::Aggregate(_) | Expr::Vector(_) => ValueType::Vector,
            Expr::Binary(e) => match (of(e.lhs), of(e.rhs)) {
                (ValueType::Scalar, ValueType::Scalar) => ValueType::Scalar,
                _ => ValueType::Vector,
            },
            Expr::Call(e) => e.function.signature().returns,
            Expr::Matrix(_) | Expr::Subquery(_) => ValueType::Matrix,
            Expr::Number(_) => ValueType::Scalar,
            Expr::Paren(e) => of(e.expr),
            Expr::String(_) => ValueType::String,
            Expr::Unary(e) => of(e.expr),
        }
    }
}

/// An expression within its tree.
#[derive(Clone, Copy, Debug)]
pub struct ExprRef<'a> {
    ast: &'a Ast,
    id: ExprId,
}

impl<'a> ExprRef<'a> {
    /// Where it stands.
    pub fn id(self) -> ExprId {
        self.id
    }

    /// What it is.
    pub fn expr(self) -> &'a Expr {
        &self.ast[self.id]
    }

    /// Another expression of the same tree.
    pub fn at(self, id: ExprId) -> Self {
        Self { id, ..self }
    }

    /// The tree it is in.
    pub fn ast(self) -> &'a Ast {
        self.ast
    }

    /// What it evaluates to.
    pub fn value_type(self) -> ValueType {
        self.ast.entries[self.id.place()].value_type
    }

    /// The expression inside any parentheses around it.
    pub fn unwrap_parens(mut self) -> Self {
        while let Expr::Paren(paren) = self.expr() {
            self.id = paren.expr;
        }
        self
    }

    /// The expressions directly below, in Prometheus' order, see [`Expr::children`].
    pub fn children(self) -> impl Iterator<Item = Self> {
        self.expr().children().map(move |id| self.at(id))
    }

    /// The expressions below it and then itself, in the order of the text, each after those below it.
    pub fn below(self) -> impl Iterator<Item = Self> {
        let first = self.ast.entries[self.id.place()].first.place();
        (first..=self.id.place()).map(move |place| self.at(ExprId::at(place)))
    }

    /// A tree of its own.
    pub fn to_ast(self) -> Ast {
        let first = self.ast.entries[self.id.place()].first.place();
        let mut out = Ast::with_capacity(self.id.place() + 1 - first);
        for part in self.below() {
            out.push(part.expr().with_children(|child| child - first));
        }
        out
    }
}
