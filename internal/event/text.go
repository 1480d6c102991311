package event

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// str reads a string from the byte after its opening quote. It returns the offset after its closing quote,
// or -1 after a fault, and whether the string has escapes.
func (s *scanner) str(i int) (end int, escaped bool) {
	text := s.text
	for {
		if i = skipPlain(text, i); i == len(text) {
			return s.cutOff(), escaped
		}
		switch c := text[i]; {
		case c == '"':
			return i + 1, escaped
		case c == '\\':
			escaped = true
			if i = s.escape(i); i < 0 {
				return -1, escaped
			}
		case c < ' ':
			return s.invalid(i, "not JSON: a control character stands bare in a string; escape it"), escaped
		default:
			for i < len(text) && text[i] >= utf8.RuneSelf {
				r, size := utf8.DecodeRune(text[i:])
				if r == utf8.RuneError && size == 1 {
					s.fault.note(fault{reason: InvalidUnicode, at: i, text: "the bytes of a string are not UTF-8; encode the event as UTF-8"})
					return -1, escaped
				}
				i += size
			}
		}
	}
}

// skipPlain returns the offset of the first byte from i on that a string can't hold as it is without a closer
// look: a quote, a backslash, a control character or one outside ASCII. It looks at eight bytes at a time:
// subtracting borrows from the top bit of each byte that is below 0x20, or became zero by XOR with the byte
// sought. A borrow may spoil the bytes above it, never the lowest hit, and only that counts.
func skipPlain(text []byte, i int) int {
	const each, tops = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(text); i += 8 {
		word := binary.LittleEndian.Uint64(text[i:])
		hits := (word - each*' ') | (word ^ each*'"' - each) | (word ^ each*'\\' - each) | word
		if hits &= tops; hits != 0 {
			return i + bits.TrailingZeros64(hits)/8
		}
	}
	for ; i < len(text); i++ {
		if c := text[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return i
}

// escape reads the escape whose backslash is at i, both halves of a surrogate pair together. It returns the
// offset after it, or -1 after a fault.
func (s *scanner) escape(i int) int {
	text := s.text
	if i+1 == len(text) {
		return s.cutOff()
	}
	switch text[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
	default:
		return s.invalid(i+1, "not JSON: there is no such escape in a string")
	}
	switch r := unit(text[i:]); {
	case r < 0:
		return s.invalid(i, `not JSON: "\u" needs four hex digits`)
	case r == 0:
		s.fault.note(fault{reason: NULCharacter, at: i, text: "a string holds U+0000, which PostgreSQL can't store; leave it out"})
		return -1
	case !utf16.IsSurrogate(r):
		return i + 6
	case utf16.DecodeRune(r, unit(text[i+6:])) == utf8.RuneError:
		s.fault.note(fault{reason: InvalidUnicode, at: i, text: "a surrogate stands alone; escape characters beyond U+FFFF as pairs"})
		return -1
	}
	return i + 12
}

// unit returns the UTF-16 code unit of the escape \uXXXX that text starts with, or -1 if it does not.
func unit(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range text[2:6] {
		digit := hexDigit(c)
		if digit < 0 {
			return -1
		}
		r = r<<4 | digit
	}
	return r
}

// hexDigit returns the value of a hex digit of either case, or -1.
func hexDigit(c byte) rune { return rune(hexDigits[c]) }

var hexDigits = func() (values [256]int8) {
	for c := range values {
		values[c] = -1
	}
	for value := range int8(16) {
		values["0123456789abcdef"[value]], values["0123456789ABCDEF"[value]] = value, value
	}
	return values
}()

// unescapes holds the characters that single-letter escapes stand for.
var unescapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// appendUnescaped appends what the inside of a string that was found valid stands for.
func appendUnescaped(dst, raw []byte) []byte {
	for len(raw) > 0 {
		if raw[0] != '\\' {
			plain := 1
			for plain < len(raw) && raw[plain] != '\\' {
				plain++
			}
			dst = append(dst, raw[:plain]...)
			raw = raw[plain:]
			continue
		}
		if raw[1] != 'u' {
			dst = append(dst, unescapes[raw[1]])
			raw = raw[2:]
			continue
		}
		r := unit(raw)
		raw = raw[6:]
		if utf16.IsSurrogate(r) {
			r = utf16.DecodeRune(r, unit(raw))
			raw = raw[6:]
		}
		dst = utf8.AppendRune(dst, r)
	}
	return dst
}
