package event

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBytes holds faults of the bytes against the place they must be found at.
func TestBytes(t *testing.T) {
	cases := []struct {
		name   string
		value  string
		reason Reason
		at     string
	}{
		{"blank", " \t\r\n", InvalidJSON, "byte 4"},
		{"byte order mark", "\xef\xbb\xbf" + with(`"x":1`), InvalidJSON, "byte 0"},
		{"byte order mark after", "{}\xef\xbb\xbf", InvalidJSON, "byte 2"},
		{"stray byte", "{\xff}", InvalidJSON, "byte 1"},
		{"raw NUL outside", "{}\x00", InvalidJSON, "byte 2"},
		{"raw NUL in a string", "{\"a\x00\":1}", InvalidJSON, "byte 3"},
		{"raw newline in a string", "{\"a\":\"\n\"}", InvalidJSON, "byte 6"},
		{"raw 0x1f in a string", "{\"a\":\"\x1f\"}", InvalidJSON, "byte 6"},
		{"vertical tab as space", "\v{}", InvalidJSON, "byte 0"},
		{"form feed as space", "{}\f", InvalidJSON, "byte 2"},
		{"no-break space", "{\u00a0}", InvalidJSON, "byte 1"},
		{"next line", "{\u0085}", InvalidJSON, "byte 1"},
		{"open object", "{", InvalidJSON, "byte 1"},
		{"open array", "[", InvalidJSON, "byte 1"},
		{"open after comma", "[1,", InvalidJSON, "byte 3"},
		{"open after colon", `{"a":`, InvalidJSON, "byte 5"},
		{"open after key", `{"a"`, InvalidJSON, "byte 4"},
		{"open after value", `[1`, InvalidJSON, "byte 2"},
		{"open after member", `{"a":"b" `, InvalidJSON, "byte 9"},
		{"open in key", `{"a`, InvalidJSON, "byte 3"},
		{"open in escape", `{"a":"\`, InvalidJSON, "byte 7"},
		{"open in unicode escape", `{"a":"\u00`, InvalidJSON, "byte 6"},
		{"trailing comma in object", `{"a":1,}`, InvalidJSON, "byte 7"},
		{"trailing comma in array", `[1,]`, InvalidJSON, "byte 3"},
		{"leading comma", `[,1]`, InvalidJSON, "byte 1"},
		{"leading comma in object", `{,"a":1}`, InvalidJSON, "byte 1"},
		{"two commas", `[1,,2]`, InvalidJSON, "byte 3"},
		{"no comma", `[1 2]`, InvalidJSON, "byte 3"},
		{"no comma in object", `{"a":1 "b":2}`, InvalidJSON, "byte 7"},
		{"no colon", `{"a" 1}`, InvalidJSON, "byte 5"},
		{"two colons", `{"a"::1}`, InvalidJSON, "byte 5"},
		{"colon in array", `["a":1]`, InvalidJSON, "byte 4"},
		{"no value", `{"a":}`, InvalidJSON, "byte 5"},
		{"only a key", `{"a"}`, InvalidJSON, "byte 4"},
		{"key without quotes", `{a:1}`, InvalidJSON, "byte 1"},
		{"key in single quotes", `{'a':1}`, InvalidJSON, "byte 1"},
		{"number as key", `{1:1}`, InvalidJSON, "byte 1"},
		{"wrong closer", `[1}`, InvalidJSON, "byte 2"},
		{"wrong closer of object", `{"a":1]`, InvalidJSON, "byte 6"},
		{"crossed", `{"a":[1}]`, InvalidJSON, "byte 7"},
		{"wrong closer of empty", `[}`, InvalidJSON, "byte 1"},
		{"wrong closer of empty object", `{]`, InvalidJSON, "byte 1"},
		{"closer alone", `]`, InvalidJSON, "byte 0"},
		{"one closer more", `{}}`, InvalidJSON, "byte 2"},
		{"comma after", `{},`, InvalidJSON, "byte 2"},
		{"two values", `1 2`, InvalidJSON, "byte 2"},
		{"comment", `{}//`, InvalidJSON, "byte 2"},
		{"capital literal", `[True]`, InvalidJSON, "byte 1"},
		{"cut literal", `[tru]`, InvalidJSON, "byte 1"},
		{"cut null", `nul`, InvalidJSON, "byte 0"},
		{"long literal", `[nullx]`, InvalidJSON, "byte 5"},
		{"literals run on", `[truefalse]`, InvalidJSON, "byte 5"},
		{"undefined", `[undefined]`, InvalidJSON, "byte 1"},
		{"Infinity", `[-Infinity]`, InvalidJSON, "byte 2"},
		{"unknown escape", `["\x41"]`, InvalidJSON, "byte 3"},
		{"escaped single quote", `["\'"]`, InvalidJSON, "byte 3"},
		{"capital U escape", `["\U0041"]`, InvalidJSON, "byte 3"},
		{"short unicode escape", `["\u041"]`, InvalidJSON, "byte 2"},
		{"no hex digit", `["\u004g"]`, InvalidJSON, "byte 2"},
		{"sign in unicode escape", `["\u+041"]`, InvalidJSON, "byte 2"},
		{"leading zero", `[01]`, InvalidJSON, "byte 2"},
		{"leading zero, negative", `[-01]`, InvalidJSON, "byte 3"},
		{"two zeros", `[00]`, InvalidJSON, "byte 2"},
		{"plus", `[+1]`, InvalidJSON, "byte 1"},
		{"point first", `[.5]`, InvalidJSON, "byte 1"},
		{"point last", `[5.]`, InvalidJSON, "byte 3"},
		{"point and exponent", `[5.e1]`, InvalidJSON, "byte 3"},
		{"two points", `[1.2.3]`, InvalidJSON, "byte 4"},
		{"minus alone", `[-]`, InvalidJSON, "byte 2"},
		{"minus at the end", `-`, InvalidJSON, "byte 1"},
		{"two minuses", `[--1]`, InvalidJSON, "byte 2"},
		{"exponent alone", `[1e]`, InvalidJSON, "byte 3"},
		{"exponent sign alone", `[1e+]`, InvalidJSON, "byte 4"},
		{"two exponent signs", `[1e+-1]`, InvalidJSON, "byte 4"},
		{"hex number", `[0x1]`, InvalidJSON, "byte 2"},
		{"number at the end", `1e`, InvalidJSON, "byte 2"},

		{"continuation byte alone", "[\"\x80\"]", InvalidUnicode, "byte 2"},
		{"0xff", "[\"aaaaaaaaa\xff\"]", InvalidUnicode, "byte 11"},
		{"overlong slash", "[\"\xc0\xaf\"]", InvalidUnicode, "byte 2"},
		{"overlong NUL", "[\"\xc0\x80\"]", InvalidUnicode, "byte 2"},
		{"overlong of three", "[\"\xe0\x80\xaf\"]", InvalidUnicode, "byte 2"},
		{"overlong of four", "[\"\xf0\x80\x80\xaf\"]", InvalidUnicode, "byte 2"},
		{"surrogate bytes", "[\"é\xed\xa0\x80\"]", InvalidUnicode, "byte 4"},
		{"CESU-8 pair", "[\"\xed\xa0\xbd\xed\xb8\x80\"]", InvalidUnicode, "byte 2"},
		{"beyond U+10FFFF", "[\"\xf4\x90\x80\x80\"]", InvalidUnicode, "byte 2"},
		{"five bytes", "[\"\xf8\x88\x80\x80\x80\"]", InvalidUnicode, "byte 2"},
		{"cut by the quote", "[\"\xe2\x82\"]", InvalidUnicode, "byte 2"},
		{"cut by the end", "[\"\xe2\x82", InvalidUnicode, "byte 2"},
		{"cut by a control character", "[\"\xe2\x00\"]", InvalidUnicode, "byte 2"},
		{"in a key", "{\"\xff\":1}", InvalidUnicode, "byte 2"},
		{"high surrogate", `["\ud83d"]`, InvalidUnicode, "byte 2"},
		{"high surrogate, capitals", `["a\uDBFFb"]`, InvalidUnicode, "byte 3"},
		{"low surrogate", `["\ude00"]`, InvalidUnicode, "byte 2"},
		{"pair the wrong way round", `["\ude00\ud83d"]`, InvalidUnicode, "byte 2"},
		{"two high surrogates and a low one", `["\ud83d\ud83d\ude00"]`, InvalidUnicode, "byte 2"},
		{"pair and a low surrogate", `["\ud83d\ude00\ude00"]`, InvalidUnicode, "byte 14"},
		{"high surrogate and a letter", `["\ud83d\u0041"]`, InvalidUnicode, "byte 2"},
		{"high surrogate and an escape", `["\ud83d\n"]`, InvalidUnicode, "byte 2"},
		{"high surrogate, then a bad escape", `["\ud83d\uzzzz"]`, InvalidUnicode, "byte 2"},
		{"high surrogate, then NUL", `["\ud83d\u0000"]`, InvalidUnicode, "byte 2"},
		{"high surrogate at the end", `["\ud83d`, InvalidUnicode, "byte 2"},
		{"surrogate in a key", `{"\udc00":1}`, InvalidUnicode, "byte 2"},

		{"NUL", `["\u0000"]`, NULCharacter, "byte 2"},
		{"NUL in a key", `{"a\u0000":1}`, NULCharacter, "byte 3"},
		{"NUL deep", `{"a":[{"b":["c\u0000"]}]}`, NULCharacter, "byte 14"},

		{"NUL before broken grammar", `["\u0000",]`, NULCharacter, "byte 2"},
		{"broken grammar before NUL", `[,"\u0000"]`, InvalidJSON, "byte 1"},
		{"NUL before invalid UTF-8", "[\"\\u0000\xff\"]", NULCharacter, "byte 2"},
		{"invalid UTF-8 before NUL", "[\"\xff\\u0000\"]", InvalidUnicode, "byte 2"},
		{"NUL in a second value", `{} "\u0000"`, InvalidJSON, "byte 3"},
		{"NUL, then cut off", `{"a":"\u0000`, NULCharacter, "byte 6"},
		{"surrogate after a duplicate key", `{"a":1,"a":"\ud800"}`, InvalidUnicode, "byte 12"},
		{"cut off in an array", `[[1,2],[`, InvalidJSON, "byte 8"},
		{"cut off too deep", strings.Repeat("[", 40), InvalidJSON, "byte 40"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			require.Contains(t, refused(t, c.reason, c.value)+" ", c.at+": ")
		})
	}
}

// TestWhole holds faults of a well-formed text as a whole.
func TestWhole(t *testing.T) {
	cases := []struct {
		name   string
		value  string
		reason Reason
	}{
		{"null", "null", NotAnObject},
		{"true", " true ", NotAnObject},
		{"number", "0", NotAnObject},
		{"negative number", "-1.5e3", NotAnObject},
		{"empty string", `""`, NotAnObject},
		{"empty array", "[]", NotAnObject},
		{"array of an event", "[" + with(`"x":1`) + "]", NotAnObject},
		{"empty object", "{}", MissingField},
		{"empty object, spaced", "\n{ }\t", MissingField},
		{"duplicate unknown key", with(`"x":1,"x":1`), DuplicateKey},
		{"duplicate null", with(`"ttl":null,"ttl":null`), DuplicateKey},
		{"duplicate of a required one", with(`"action":"data.read"`), DuplicateKey},
		{"duplicate empty key", with(`"":1,"":2`), DuplicateKey},
		{"duplicate by escape", with(`"ab":1,"\u0061b":2`), DuplicateKey},
		{"duplicate by two escapes", with(`"\u002F":1,"\/":2`), DuplicateKey},
		{"duplicate by hex case", with(`"\u00e9":1,"\u00E9":2`), DuplicateKey},
		{"duplicate by surrogate pair", with(`"😀":1,"\ud83d\uDE00":2`), DuplicateKey},
		{"duplicate of a known key by escape", with(`"\u0061ction":"x"`), DuplicateKey},
		{"duplicate in an object", with(`"x":{"a":1,"b":2,"a":3}`), DuplicateKey},
		{"duplicate in an object in an array", with(`"x":[1,[{"a":1},{"b":1,"b":1}]]`), DuplicateKey},
		{"duplicate after an inner object", with(`"x":{"a":{"b":1},"b":2,"a":3}`), DuplicateKey},
		{"duplicate around an inner object", with(`"x":{"a":{"a":1},"b":[{"a":1}],"a":3}`), DuplicateKey},
		{"duplicate far down", with(`"x":` + strings.Repeat("[", 50) + `{"a":1,"a":1}` + strings.Repeat("]", 50)), DuplicateKey},
		{"duplicate among 16", with(`"x":{` + numbered(16, `"k1":0`) + `}`), DuplicateKey},
		{"duplicate among 17", with(`"x":{` + numbered(17, `"k16":0`) + `}`), DuplicateKey},
		{"duplicate among 1000", with(`"x":{` + numbered(1000, `"k\u0030":0`) + `}`), DuplicateKey},
		{"duplicate among 1000 at the top", with(numbered(1000, `"k999":0`)), DuplicateKey},
		{"duplicate among 1000, then good objects", with(`"x":{` + numbered(1000, `"k5":0`) + `},"y":{"a":1}`), DuplicateKey},
		{"depth 33", with(`"x":` + strings.Repeat("[", 32) + strings.Repeat("]", 32)), TooDeep},
		{"depth 33 of objects", with(strings.Repeat(`"x":{`, 32) + strings.Repeat("}", 32)), TooDeep},
		{"depth 33 mixed", with(`"x":` + strings.Repeat(`[{"a":`, 16) + "1" + strings.Repeat("}]", 16)), TooDeep},
		{"depth 33 of a null's neighbour", with(`"x":[null,` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `]`), TooDeep},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { refused(t, c.reason, c.value) })
	}
}

// numbered returns n members with distinct keys k0 to k(n-1), and then the given one.
func numbered(n int, last string) string {
	var out strings.Builder
	for i := range n {
		out.WriteString(`"k` + itoa(i) + `":0,`)
	}
	return out.String() + last
}

// TestWellFormed takes what is unusual and yet allowed.
func TestWellFormed(t *testing.T) {
	for _, members := range []string{
		`"":0`,
		`"x":{"a":1,"A":2,"á":3,"a\u0301":4}`,
		`"Action":"x","ACTION":"y","action ":"z"`,
		`"x":[{"a":1},{"a":1}],"y":{"a":1,"x":{"a":1,"x":2}}`,
		`"x":{` + numbered(1000, `"k1000":0`) + `}`,
		numbered(16, `"k16":0`),
		`"x":"` + "\x7f\u0080\u2028\ufffd\uffff\U0010ffff" + `"`,
		`"x":"\ud83d\ude00\uDBFF\uDFFF\u0001\uFFFF\/\b\f\n\r\t\"\\"`,
		`"x":"\\u0000","y":"\\ud800"`,
		`"x":[0,-0,0.0,-0.0e-0,1E+1,1e-1,10.01,0e0]`,
		`"x":[[],{},[[]],[{}],"",null,true,false]`,
		`"x":` + strings.Repeat("[", 31) + strings.Repeat("]", 31),
		strings.Repeat(`"x":{`, 31) + strings.Repeat("}", 31),
		`"x":[` + strings.Repeat("[[]],", 100) + `1]`,
		" \t\r\n\"x\" \t\r\n:\t1 ",
	} {
		taken(t, with(members))
		taken(t, " \n\t\r"+with(members)+"\r\n ")
	}
}

// TestEveryByteInAString drives the eight-byte steps: each byte, at each place of strings around the step's size.
func TestEveryByteInAString(t *testing.T) {
	for c := range 256 {
		for size := 1; size <= 17; size++ {
			for at := range size {
				text := bytes.Repeat([]byte{'~'}, size)
				text[at] = byte(c)
				want := size
				if c < ' ' || c == '"' || c == '\\' || c >= 0x80 {
					want = at
				}
				require.Equal(t, want, skipPlain(text, 0), "%q", text)
			}
		}
	}
}
