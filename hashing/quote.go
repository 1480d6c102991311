package hashing

import (
	"encoding/binary"
	"math/bits"
)

// appendValue appends a member's value: null when it is empty, else a JSON string.
func appendValue(dst, text []byte) []byte {
	if len(text) == 0 {
		return append(dst, "null"...)
	}
	dst = append(dst, '"')
	for {
		plain := plainPrefix(text)
		dst = append(dst, text[:plain]...)
		if plain == len(text) {
			return append(dst, '"')
		}
		dst = appendEscape(dst, text[plain])
		text = text[plain+1:]
	}
}

// appendEscape appends the escape of a quote, a backslash or a control character. Everything else
// JSON.stringify leaves as it is, also <, >, &, U+007F and U+2028.
func appendEscape(dst []byte, c byte) []byte {
	const digits = "0123456789abcdef"
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, `\b`...)
	case '\t':
		return append(dst, `\t`...)
	case '\n':
		return append(dst, `\n`...)
	case '\f':
		return append(dst, `\f`...)
	case '\r':
		return append(dst, `\r`...)
	}
	return append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&0xf])
}

// plainPrefix returns how many bytes at the start of text need no escape. It looks at eight bytes at a time, the last of which may have
// been looked at before.
func plainPrefix(text []byte) int {
	i := 0
	for ; i+8 <= len(text); i += 8 {
		if hits := escaped(binary.LittleEndian.Uint64(text[i:])); hits != 0 {
			return i + bits.TrailingZeros64(hits)/8
		}
	}
	if i < len(text) && len(text) >= 8 {
		i = len(text) - 8
		if hits := escaped(binary.LittleEndian.Uint64(text[i:])); hits != 0 {
			return i + bits.TrailingZeros64(hits)/8
		}
		return len(text)
	}
	for ; i < len(text); i++ {
		if c := text[i]; c < 0x20 || c == '"' || c == '\\' {
			break
		}
	}
	return i
}

// escaped marks the bytes of a word that need an escape by their top bits: subtracting borrows from the top bit of each byte below 0x20, and
// of each byte that became zero when the byte sought was taken out by XOR. A borrow may spoil the bytes above it, never the lowest hit.
func escaped(word uint64) uint64 {
	const each, tops = 0x0101010101010101, 0x8080808080808080
	quote, backslash := word^each*'"', word^each*'\\'
	return ((word-each*0x20)&^word | (quote-each)&^quote | (backslash-each)&^backslash) & tops
}
