package event

import (
	"time"

	"auditsink/hashing"
)

// parseTimestamp reads a timestamp of RFC 3339, with one to nine digits of fraction if any, and without a zone
// (meaning UTC) if so sent. It returns microseconds since the Unix epoch; further digits are dropped, which
// is truncation towards the past. It is stricter than time.Parse, which takes a comma, one-digit hours and more
// digits; second 60 and hour 24 are no instants of a timestamptz either.
func parseTimestamp(text []byte) (unixMicro int64, ok bool) {
	const dateTime = len("2006-01-02T15:04:05")
	if len(text) < dateTime ||
		text[4] != '-' || text[7] != '-' || text[10]|0x20 != 't' || text[13] != ':' || text[16] != ':' {
		return 0, false
	}
	century, yearOfCentury := twoDigits(text[0:]), twoDigits(text[2:])
	month, day := twoDigits(text[5:]), twoDigits(text[8:])
	hour, minute, second := twoDigits(text[11:]), twoDigits(text[14:]), twoDigits(text[17:])
	year := century*100 + yearOfCentury
	if century < 0 || yearOfCentury < 0 || month < 1 || month > 12 || day < 1 || day > daysIn(month, year) ||
		hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59 {
		return 0, false
	}
	micro, rest, ok := parseFraction(text[dateTime:])
	if !ok {
		return 0, false
	}
	offset, ok := parseZone(rest)
	if !ok {
		return 0, false
	}
	at := time.Date(year, time.Month(month), day, hour, minute-offset, second, 0, time.UTC)
	return at.UnixMicro() + int64(micro), true
}

// isCanonical reports whether a text that parseTimestamp takes is what [hashing.AppendTimestamp] gives for its instant: milliseconds,
// in UTC, with capital letters.
func isCanonical(text []byte) bool {
	const milliseconds = len("2006-01-02T15:04:05.000")
	return len(text) == hashing.TimestampLen && text[10] == 'T' && text[milliseconds] == 'Z'
}

// parseFraction reads the fraction of a second that text may start with, as microseconds.
func parseFraction(text []byte) (micro int, rest []byte, ok bool) {
	if len(text) == 0 || text[0] != '.' {
		return 0, text, true
	}
	end := skipDigits(text, 1)
	if digits := end - 1; digits < 1 || digits > 9 {
		return 0, nil, false
	}
	for i := 1; i <= 6; i++ {
		micro *= 10
		if i < end {
			micro += int(text[i] - '0')
		}
	}
	return micro, text[end:], true
}

// parseZone reads a whole zone as minutes east of UTC.
func parseZone(text []byte) (minutes int, ok bool) {
	switch {
	case len(text) == 0:
		return 0, true
	case len(text) == 1:
		return 0, text[0]|0x20 == 'z'
	case len(text) != len("+00:00") || text[0] != '+' && text[0] != '-' || text[3] != ':':
		return 0, false
	}
	hour, minute := twoDigits(text[1:]), twoDigits(text[4:])
	if hour < 0 || hour > 23 || minute < 0 || minute > 59 {
		return 0, false
	}
	minutes = hour*60 + minute
	if text[0] == '-' {
		minutes = -minutes
	}
	return minutes, true
}

// twoDigits returns the number in the first two bytes of text, or -1 if they are not digits.
func twoDigits(text []byte) int {
	if !isDigit(text[0]) || !isDigit(text[1]) {
		return -1
	}
	return int(text[0]-'0')*10 + int(text[1]-'0')
}

// daysIn returns how many days a month has in the proleptic Gregorian calendar.
func daysIn(month, year int) int {
	switch month {
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	case 4, 6, 9, 11:
		return 30
	}
	return 31
}
