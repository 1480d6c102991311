package hashing

import "time"

// TimestampLen is the length of a canonical timestamp of the years 0000 to 9999.
const TimestampLen = len("2006-01-02T15:04:05.000Z")

// AppendTimestamp appends the canonical text of an instant in microseconds since the Unix epoch, as
// ECMAScript's Date.toISOString gives it: YYYY-MM-DDTHH:MM:SS.mmmZ, the milliseconds truncated towards
// the past. A year outside 0000 to 9999 gets a sign and six digits.
func AppendTimestamp(dst []byte, unixMicro int64) []byte {
	t := time.UnixMicro(unixMicro).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	switch {
	case year < 0:
		dst = appendDigits(append(dst, '-'), -year, 6)
	case year > 9999:
		dst = appendDigits(append(dst, '+'), year, 6)
	default:
		dst = appendDigits(dst, year, 4)
	}
	dst = appendDigits(append(dst, '-'), int(month), 2)
	dst = appendDigits(append(dst, '-'), day, 2)
	dst = appendDigits(append(dst, 'T'), hour, 2)
	dst = appendDigits(append(dst, ':'), minute, 2)
	dst = appendDigits(append(dst, ':'), second, 2)
	dst = appendDigits(append(dst, '.'), t.Nanosecond()/int(time.Millisecond), 3)
	return append(dst, 'Z')
}

// appendDigits appends the last width decimal digits of n ≥ 0.
func appendDigits(dst []byte, n, width int) []byte {
	start := len(dst)
	dst = append(dst, "000000"[:width]...)
	for i := start + width - 1; i >= start; i-- {
		dst[i] = byte('0' + n%10)
		n /= 10
	}
	return dst
}
