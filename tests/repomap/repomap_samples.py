"""A small text in each language, and what it defines: kind, name, parent and signature, in the order of the text."""

from __future__ import annotations

Expected = tuple[str, str, str, str]

SAMPLES: dict[str, tuple[str, str, list[Expected]]] = {}


def sample(language: str, name: str, text: str, expected: list[Expected]) -> None:
    SAMPLES[language] = (name, text, expected)


sample(
    "python",
    "shop.py",
    """
LIMIT = 10

@decorator(1)
class Cart(Base, metaclass=Meta):
    size: int = 0

    async def add(
        self,
        item: Item,  # what is added
        *,
        count: int = 1,
    ) -> None:
        def inner(): ...

    @property
    def total(self): return helper()

def helper(): pass
""",
    [
        ("variable", "LIMIT", "", "LIMIT = 10"),
        ("class", "Cart", "", "class Cart(Base, metaclass=Meta)"),
        ("method", "add", "Cart", "async def add(self, item: Item, *, count: int = 1) -> None"),
        ("function", "inner", "Cart.add", "def inner()"),
        ("method", "total", "Cart", "def total(self)"),
        ("function", "helper", "", "def helper()"),
    ],
)
sample(
    "javascript",
    "shop.js",
    """
import { x } from "y";
export default class Cart extends Base {
  #secret() {}
  add(item, count = 1) { return this.items.push(item); }
  handle = (event) => { };
}
function* walk(tree) { yield tree; }
const twice = (n) => n * 2;
export const LIMIT = 10;
var Old = function (a) { };
Old.prototype.run = function (b) { };
module.exports = { start: function (port) { } };
""",
    [
        ("class", "Cart", "", "class Cart extends Base"),
        ("method", "#secret", "Cart", "#secret()"),
        ("method", "add", "Cart", "add(item, count = 1)"),
        ("method", "handle", "Cart", "handle = (event)"),
        ("function", "walk", "", "function* walk(tree)"),
        ("function", "twice", "", "const twice = (n)"),
        ("variable", "LIMIT", "", "const LIMIT = 10"),
        ("function", "Old", "", "var Old = function (a)"),
        ("method", "run", "Old", "Old.prototype.run = function (b)"),
        ("method", "start", "", "start: function (port)"),
    ],
)
sample(
    "typescript",
    "shop.ts",
    """
export interface Item<T> extends Base {
  price(currency: string): number;
}
export type Handler = (event: Event) => void;
export enum Color { Red, Green }
namespace Deep { export function inside(): void { } }
export abstract class Cart<T> implements Shop {
  constructor(private readonly items: T[]) { super(); }
  abstract total(): number;
  private add(item: T): void { }
  onClick = (e: Event): void => { };
}
export const make = async (n: number): Promise<Cart<number>> => { return null; };
declare function outside(a: string): void;
export const LIMIT: number = 10;
""",
    [
        ("interface", "Item", "", "interface Item<T> extends Base"),
        ("method", "price", "Item", "price(currency: string): number"),
        ("type", "Handler", "", "type Handler = (event: Event) => void"),
        ("enum", "Color", "", "enum Color"),
        ("namespace", "Deep", "", "namespace Deep"),
        ("function", "inside", "Deep", "function inside(): void"),
        ("class", "Cart", "", "abstract class Cart<T> implements Shop"),
        ("method", "constructor", "Cart", "constructor(private readonly items: T[])"),
        ("method", "total", "Cart", "abstract total(): number"),
        ("method", "add", "Cart", "private add(item: T): void"),
        ("method", "onClick", "Cart", "onClick = (e: Event): void"),
        ("function", "make", "", "const make = async (n: number): Promise<Cart<number>>"),
        ("function", "outside", "", "function outside(a: string): void"),
        ("variable", "LIMIT", "", "const LIMIT: number = 10"),
    ],
)
sample(
    "tsx",
    "Page.tsx",
    """
interface Props { title: string }
export function Page({ title }: Props) { return <h1 className="x">{title}</h1>; }
export const Button: React.FC<Props> = (props) => <button>{props.title}</button>;
""",
    [
        ("interface", "Props", "", "interface Props"),
        ("function", "Page", "", "function Page({ title }: Props)"),
        ("function", "Button", "", "const Button: React.FC<Props> = (props)"),
    ],
)
sample(
    "java",
    "Cart.java",
    """
package shop;
@Entity(name = "cart (old)")
public final class Cart<T extends Item> extends Base implements Shop {
    private static final int LIMIT = 10;
    public Cart(int size) { }
    @Override
    @SuppressWarnings({"a", "b"})
    public <R> List<R> add(T item, int count) throws IOException { return null; }
    interface Visitor { void visit(Cart<?> cart); }
    enum Color { RED, GREEN; Color next() { return RED; } }
    record Pair(int a, int b) { }
    @interface Marker { }
}
""",
    [
        ("class", "Cart", "", "public final class Cart<T extends Item> extends Base implements Shop"),
        ("constructor", "Cart", "Cart", "public Cart(int size)"),
        ("method", "add", "Cart", "public <R> List<R> add(T item, int count) throws IOException"),
        ("interface", "Visitor", "Cart", "interface Visitor"),
        ("method", "visit", "Cart.Visitor", "void visit(Cart<?> cart)"),
        ("enum", "Color", "Cart", "enum Color"),
        ("method", "next", "Cart.Color", "Color next()"),
        ("class", "Pair", "Cart", "record Pair(int a, int b)"),
        ("interface", "Marker", "Cart", "@interface Marker"),
    ],
)
sample(
    "kotlin",
    "Cart.kt",
    """
package shop
val LIMIT = 10
typealias Handler = (Event) -> Unit
interface Shop { fun open(): Boolean }
data class Item(val name: String, val price: Int)
open class Cart(private val size: Int) : Base(), Shop {
    val items: List<Item> = listOf()
    override fun open(): Boolean = true
    companion object { fun make(): Cart { return Cart(1) } }
}
object Registry { fun find(name: String): Cart? = null }
enum class Color { RED, GREEN }
fun String.shout(times: Int = 1): String { return this }
""",
    [
        ("variable", "LIMIT", "", "val LIMIT = 10"),
        ("type", "Handler", "", "typealias Handler = (Event) -> Unit"),
        ("interface", "Shop", "", "interface Shop"),
        ("method", "open", "Shop", "fun open(): Boolean"),
        ("class", "Item", "", "data class Item(val name: String, val price: Int)"),
        ("class", "Cart", "", "open class Cart(private val size: Int) : Base(), Shop"),
        ("property", "items", "Cart", "val items: List<Item> = listOf()"),
        ("method", "open", "Cart", "override fun open(): Boolean"),
        ("method", "make", "Cart", "fun make(): Cart"),
        ("object", "Registry", "", "object Registry"),
        ("method", "find", "Registry", "fun find(name: String): Cart?"),
        ("class", "Color", "", "enum class Color"),
        ("function", "shout", "", "fun String.shout(times: Int = 1): String"),
    ],
)
sample(
    "scala",
    "Cart.scala",
    """
package shop
trait Shop { def open(): Boolean; val name: String = "x" }
case class Item(name: String, price: Int)
class Cart[T <: Item](size: Int) extends Base with Shop {
  type Key = String
  def add(item: T)(implicit ctx: Context): Unit = { }
  override def open() = true
}
object Cart { def apply(): Cart[Item] = new Cart(1) }
""",
    [
        ("trait", "Shop", "", "trait Shop"),
        ("method", "open", "Shop", "def open(): Boolean"),
        ("property", "name", "Shop", 'val name: String = "x"'),
        ("class", "Item", "", "case class Item(name: String, price: Int)"),
        ("class", "Cart", "", "class Cart[T <: Item](size: Int) extends Base with Shop"),
        ("type", "Key", "Cart", "type Key = String"),
        ("method", "add", "Cart", "def add(item: T)(implicit ctx: Context): Unit"),
        ("method", "open", "Cart", "override def open()"),
        ("object", "Cart", "", "object Cart"),
        ("method", "apply", "Cart", "def apply(): Cart[Item]"),
    ],
)
sample(
    "go",
    "cart.go",
    """
package shop

const Limit = 10

var (
	first  = 1
	Second int
)

type Item struct{ Name string }

type Shop interface {
	Open(name string) error
}

type Handler func(w Writer) error

type Alias = Item

func (c *Cart[T]) Add(item Item, count int) (total int, err error) {
	return 0, nil
}

func New(options ...Option) *Cart {
	return nil
}
""",
    [
        ("constant", "Limit", "", "const Limit = 10"),
        ("variable", "first", "", "var first = 1"),
        ("variable", "Second", "", "var Second int"),
        ("struct", "Item", "", "type Item struct"),
        ("interface", "Shop", "", "type Shop interface"),
        ("method", "Open", "Shop", "Open(name string) error"),
        ("type", "Handler", "", "type Handler func(w Writer) error"),
        ("type", "Alias", "", "type Alias = Item"),
        ("method", "Add", "Cart", "func (c *Cart[T]) Add(item Item, count int) (total int, err error)"),
        ("function", "New", "", "func New(options ...Option) *Cart"),
    ],
)
sample(
    "rust",
    "cart.rs",
    """
#[derive(Debug)]
pub struct Cart<'a, T: Item> { items: Vec<&'a T> }
pub struct Pair(u32, u32);
enum Color { Red, Green }
union Bits { a: u32, b: f32 }
pub trait Shop { type Key; fn open(&self) -> bool; fn close(&self) {} }
impl<'a, T: Item> Shop for Cart<'a, T> where T: Clone {
    fn open(&self) -> bool { true }
}
impl Pair {
    pub const ZERO: Pair = Pair(0, 0);
    #[inline] pub async fn new<F>(f: F) -> Self where F: Fn() { Pair(0, 0) }
}
mod inner { pub fn deep() {} }
mod elsewhere;
macro_rules! square { ($x:expr) => { $x * $x }; }
static COUNT: u32 = 0;
type Alias = Pair;
fn main() { println!("x"); }
""",
    [
        ("struct", "Cart", "", "pub struct Cart<'a, T: Item>"),
        ("struct", "Pair", "", "pub struct Pair"),
        ("enum", "Color", "", "enum Color"),
        ("union", "Bits", "", "union Bits"),
        ("trait", "Shop", "", "pub trait Shop"),
        ("method", "open", "Shop", "fn open(&self) -> bool"),
        ("method", "close", "Shop", "fn close(&self)"),
        ("implementation", "Cart", "", "impl<'a, T: Item> Shop for Cart<'a, T> where T: Clone"),
        ("method", "open", "Cart", "fn open(&self) -> bool"),
        ("implementation", "Pair", "", "impl Pair"),
        ("constant", "ZERO", "Pair", "pub const ZERO: Pair = Pair(0, 0)"),
        ("method", "new", "Pair", "pub async fn new<F>(f: F) -> Self where F: Fn()"),
        ("module", "inner", "", "mod inner"),
        ("function", "deep", "inner", "pub fn deep()"),
        ("macro", "square", "", "macro_rules! square"),
        ("variable", "COUNT", "", "static COUNT: u32 = 0"),
        ("type", "Alias", "", "type Alias = Pair"),
        ("function", "main", "", "fn main()"),
    ],
)
sample(
    "c",
    "cart.c",
    """
#include <stdio.h>
#ifndef GUARD
#define GUARD
#define LIMIT 10
#define SQUARE(x) \\
    ((x) * (x))
#endif
struct cart { int size; };
typedef struct { int a; } pair_t;
typedef int (*handler_t)(struct cart *, int);
enum color { RED, GREEN };
union bits { int a; float b; };
extern int printf_like(const char *format, ...);
static const char *names[] = { "a" };
int counter = 0;
static struct cart *
cart_new(int size,
         const char *name /* may be null */)
{
    return 0;
}
int main(int argc, char **argv) { return 0; }
""",
    [
        ("macro", "LIMIT", "", "#define LIMIT 10"),
        ("macro", "SQUARE", "", "#define SQUARE(x)"),
        ("struct", "cart", "", "struct cart"),
        ("type", "pair_t", "", "typedef struct { int a; } pair_t"),
        ("type", "handler_t", "", "typedef int (*handler_t)(struct cart *, int)"),
        ("enum", "color", "", "enum color"),
        ("union", "bits", "", "union bits"),
        ("prototype", "printf_like", "", "extern int printf_like(const char *format, ...)"),
        ("variable", "counter", "", "int counter = 0"),
        ("function", "cart_new", "", "static struct cart * cart_new(int size, const char *name)"),
        ("function", "main", "", "int main(int argc, char **argv)"),
    ],
)
sample(
    "cpp",
    "cart.cpp",
    """
#include <vector>
#define LIMIT 10
namespace shop::inner {
template <typename T>
class Cart final : public Base<T> {
 public:
  explicit Cart(int size);
  ~Cart() override = default;
  int total() const { return 0; }
  virtual void add(const T& item, int count = 1) = 0;
  bool operator==(const Cart& other) const;
};
struct Item { int price; };
enum class Color { Red, Green };
using Items = std::vector<Item>;
template <typename T> concept Small = sizeof(T) < 8;
}
shop::Item& shop::Store::find(const std::string& name) { return items_[0]; }
Store::~Store() { }
static int counter = 0;
int main(int argc, char** argv) { auto f = [](int x) { return x; }; }
""",
    [
        ("macro", "LIMIT", "", "#define LIMIT 10"),
        ("namespace", "inner", "shop", "namespace shop::inner"),
        ("class", "Cart", "shop.inner", "class Cart final : public Base<T>"),
        ("prototype", "Cart", "shop.inner.Cart", "explicit Cart(int size)"),
        ("method", "~Cart", "shop.inner.Cart", "~Cart() override = default"),
        ("method", "total", "shop.inner.Cart", "int total() const"),
        ("prototype", "add", "shop.inner.Cart", "virtual void add(const T& item, int count = 1) = 0"),
        ("prototype", "operator==", "shop.inner.Cart", "bool operator==(const Cart& other) const"),
        ("struct", "Item", "shop.inner", "struct Item"),
        ("enum", "Color", "shop.inner", "enum class Color"),
        ("type", "Items", "shop.inner", "using Items = std::vector<Item>"),
        ("type", "Small", "shop.inner", "concept Small = sizeof(T) < 8"),
        ("method", "find", "shop.Store", "shop::Item& shop::Store::find(const std::string& name)"),
        ("method", "~Store", "Store", "Store::~Store()"),
        ("variable", "counter", "", "static int counter = 0"),
        ("function", "main", "", "int main(int argc, char** argv)"),
    ],
)
sample(
    "csharp",
    "Cart.cs",
    """
using System;
namespace Shop.Inner
{
    [Serializable, Obsolete("no (more)")]
    public sealed class Cart<T> : Base, IShop where T : Item
    {
        public int Size { get; set; }
        public Cart(int size) : base(size) { }
        [Test] public async Task<int> Add(T item, int count = 1) => await Go();
        public delegate void Handler(object sender);
    }
    public interface IShop { bool Open(string name); }
    public struct Pair { }
    public record Point(int X, int Y);
    enum Color { Red, Green }
}
""",
    [
        ("namespace", "Shop.Inner", "", "namespace Shop.Inner"),
        ("class", "Cart", "Shop.Inner", "public sealed class Cart<T> : Base, IShop where T : Item"),
        ("property", "Size", "Shop.Inner.Cart", "public int Size { get; set; }"),
        ("constructor", "Cart", "Shop.Inner.Cart", "public Cart(int size) : base(size)"),
        ("method", "Add", "Shop.Inner.Cart", "public async Task<int> Add(T item, int count = 1)"),
        ("type", "Handler", "Shop.Inner.Cart", "public delegate void Handler(object sender)"),
        ("interface", "IShop", "Shop.Inner", "public interface IShop"),
        ("method", "Open", "Shop.Inner.IShop", "bool Open(string name)"),
        ("struct", "Pair", "Shop.Inner", "public struct Pair"),
        ("class", "Point", "Shop.Inner", "public record Point(int X, int Y)"),
        ("enum", "Color", "Shop.Inner", "enum Color"),
    ],
)
sample(
    "ruby",
    "cart.rb",
    """
module Shop
  LIMIT = 10
  class Cart < Base
    attr_reader :size
    def initialize(size, name: nil)
      @size = size
    end
    def self.make(*args) = new(*args)
    def empty?
      true
    end
    def size=(value); end
    def ==(other); end
  end
  class Deep::Inner; end
end
""",
    [
        ("module", "Shop", "", "module Shop"),
        ("constant", "LIMIT", "Shop", "LIMIT = 10"),
        ("class", "Cart", "Shop", "class Cart < Base"),
        ("method", "initialize", "Shop.Cart", "def initialize(size, name: nil)"),
        ("method", "make", "Shop.Cart", "def self.make(*args)"),
        ("method", "empty?", "Shop.Cart", "def empty?"),
        ("method", "size=", "Shop.Cart", "def size=(value)"),
        ("method", "==", "Shop.Cart", "def ==(other)"),
        ("class", "Deep::Inner", "Shop", "class Deep::Inner"),
    ],
)
sample(
    "php",
    "cart.php",
    """<?php
namespace Shop;
const LIMIT = 10;
interface Shop { public function open(string $name): bool; }
trait Counts { private function count(): int { return 0; } }
#[Entity(name: "cart")]
final class Cart extends Base implements Shop {
    const SIZE = 1;
    public function __construct(private int $size) { }
    #[Route('/x')]
    public static function make(int ...$sizes): static { return new static(1); }
}
enum Color: string { case Red = 'r'; }
function helper(array $items = []): ?Cart { return null; }
""",
    [
        ("constant", "LIMIT", "", "const LIMIT = 10"),
        ("interface", "Shop", "", "interface Shop"),
        ("method", "open", "Shop", "public function open(string $name): bool"),
        ("trait", "Counts", "", "trait Counts"),
        ("method", "count", "Counts", "private function count(): int"),
        ("class", "Cart", "", "final class Cart extends Base implements Shop"),
        ("constant", "SIZE", "Cart", "const SIZE = 1"),
        ("method", "__construct", "Cart", "public function __construct(private int $size)"),
        ("method", "make", "Cart", "public static function make(int ...$sizes): static"),
        ("enum", "Color", "", "enum Color: string"),
        ("function", "helper", "", "function helper(array $items = []): ?Cart"),
    ],
)
sample(
    "swift",
    "Cart.swift",
    """
import Foundation
let limit = 10
typealias Handler = (Event) -> Void
protocol Shop { func open(name: String) -> Bool }
@objc public final class Cart<T: Item>: Base, Shop {
    var size: Int = 0
    init(size: Int) { self.size = size }
    @discardableResult
    func add(_ item: T, count: Int = 1) throws -> Int { return 0 }
}
struct Pair { let a: Int }
enum Color { case red; func next() -> Color { return .red } }
extension Pair: Equatable { static func zero() -> Pair { Pair(a: 0) } }
actor Store { }
func helper<T>(items: [T]) -> T? { nil }
""",
    [
        ("variable", "limit", "", "let limit = 10"),
        ("type", "Handler", "", "typealias Handler = (Event) -> Void"),
        ("interface", "Shop", "", "protocol Shop"),
        ("method", "open", "Shop", "func open(name: String) -> Bool"),
        ("class", "Cart", "", "public final class Cart<T: Item>: Base, Shop"),
        ("property", "size", "Cart", "var size: Int = 0"),
        ("constructor", "init", "Cart", "init(size: Int)"),
        ("method", "add", "Cart", "func add(_ item: T, count: Int = 1) throws -> Int"),
        ("struct", "Pair", "", "struct Pair"),
        ("property", "a", "Pair", "let a: Int"),
        ("enum", "Color", "", "enum Color"),
        ("method", "next", "Color", "func next() -> Color"),
        ("implementation", "Pair", "", "extension Pair: Equatable"),
        ("method", "zero", "Pair", "static func zero() -> Pair"),
        ("class", "Store", "", "actor Store"),
        ("function", "helper", "", "func helper<T>(items: [T]) -> T?"),
    ],
)
sample(
    "lua",
    "cart.lua",
    """
local M = {}
local function helper(a, b) return a end
function M.new(size) return setmetatable({}, M) end
function M:add(item) end
M.remove = function(self, item) end
twice = function(n) return n * 2 end
return { start = function(port) end }
""",
    [
        ("function", "helper", "", "local function helper(a, b)"),
        ("method", "new", "M", "function M.new(size)"),
        ("method", "add", "M", "function M:add(item)"),
        ("method", "remove", "M", "M.remove = function(self, item)"),
        ("function", "twice", "", "twice = function(n)"),
        ("function", "start", "", "start = function(port)"),
    ],
)
sample(
    "bash",
    "cart.sh",
    """#!/bin/bash
readonly LIMIT=10
NAME="cart"
function helper() {
  local inner=1
}
main () { helper "$@"; }
main "$@"
""",
    [
        ("variable", "LIMIT", "", "LIMIT=10"),
        ("variable", "NAME", "", 'NAME="cart"'),
        ("function", "helper", "", "function helper()"),
        ("function", "main", "", "main ()"),
    ],
)
