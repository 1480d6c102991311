package event

const (
	maxDigits   = 1000 // of a number's mantissa
	maxExponent = 308  // of a number, either sign
)

// bare reads the literal or number that must start at i. It returns the offset after it, or -1.
func (s *scanner) bare(i int) int {
	rest := s.text[i:]
	switch c := rest[0]; {
	case c == '-' || isDigit(c):
		return s.number(i)
	case startsWith(rest, "true"), startsWith(rest, "null"):
		return i + len("true")
	case startsWith(rest, "false"):
		return i + len("false")
	case startsWith(rest, "\xef\xbb\xbf"):
		return s.invalid(i, "not JSON: a byte order mark; send UTF-8 without one")
	}
	return s.invalid(i, "not JSON: a value must start here")
}

func startsWith(text []byte, word string) bool {
	return len(text) >= len(word) && string(text[:len(word)]) == word
}

// number reads a number. It returns the offset after it, or -1.
func (s *scanner) number(start int) int {
	n, i, ok := readNumber(s.text, start)
	if !ok {
		if i == len(s.text) {
			return s.cutOff()
		}
		return s.invalid(i, "not JSON: a number needs a digit here")
	}
	if digits := n.whole + n.fraction; digits > maxDigits {
		s.fault.note(fault{reason: NumberOutOfRange, at: start, text: "a number has over 1000 digits; send fewer, or a string"})
	}
	if n.exponent < -maxExponent || n.exponent > maxExponent {
		s.fault.note(fault{reason: NumberOutOfRange, at: start, text: "a number's exponent is beyond ±308; send a smaller one, or a string"})
	}
	return i
}

// number is a JSON number in its parts.
type number struct {
	text            []byte // from its first digit on
	negative        bool
	whole, fraction int // how many digits stand before and after the point
	exponent        int // held within ±exponentLimit
}

// exponentLimit is far beyond any text's length, and adding to it doesn't overflow.
const exponentLimit = 1 << 40

// readNumber reads the number that starts at i. It returns the offset after it, or else the offset where a
// digit is missing.
func readNumber(text []byte, i int) (n number, end int, ok bool) {
	if text[i] == '-' {
		n.negative = true
		i++
	}
	n.text = text[i:]
	start := i
	if i < len(text) && text[i] == '0' {
		i++
	} else if i = skipDigits(text, i); i == start {
		return n, i, false
	}
	n.whole = i - start
	if i < len(text) && text[i] == '.' {
		start = i + 1
		if i = skipDigits(text, start); i == start {
			return n, i, false
		}
		n.fraction = i - start
	}
	if i < len(text) && text[i]|0x20 == 'e' {
		i++
		negative := i < len(text) && text[i] == '-'
		if i < len(text) && (text[i] == '-' || text[i] == '+') {
			i++
		}
		start = i
		for ; i < len(text) && isDigit(text[i]); i++ {
			n.exponent = min(n.exponent*10+int(text[i]-'0'), exponentLimit)
		}
		if i == start {
			return n, i, false
		}
		if negative {
			n.exponent = -n.exponent
		}
	}
	return n, i, true
}

// floorLimit is what a larger magnitude is held to; it is beyond every bound that a number is checked against.
const floorLimit = 1 << 40

// magnitude returns the number without its sign, rounded down and held to floorLimit, and whether that is
// exact. It goes over the digits, so no rounding of a float can move it over a bound.
func (n *number) magnitude() (floor int64, exact bool) {
	digits := n.whole + n.fraction
	point := n.whole + n.exponent // how many of the digits stand before the point, the exponent applied
	exact = true
	for i := range digits {
		digit := n.text[i]
		if i >= n.whole {
			digit = n.text[i+1] // the point stands in between
		}
		if i < point {
			floor = min(floor*10+int64(digit-'0'), floorLimit)
		} else if digit != '0' {
			exact = false
		}
	}
	for i := digits; i < point && floor > 0 && floor < floorLimit; i++ {
		floor = min(floor*10, floorLimit)
	}
	return floor, exact
}

func skipDigits(text []byte, i int) int {
	for i < len(text) && isDigit(text[i]) {
		i++
	}
	return i
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
