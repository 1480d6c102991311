package query

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// What holds where a question doesn't say.
const (
	DefaultLimit = 100
	DefaultRange = 24 * time.Hour
)

// Question is what somebody asks of events. The API and the command line read it from the same parameters.
type Question struct {
	Filter Filter
	Format Format
	Limit  int    // 0: no limit, in a format that is streamed
	After  string // the cursor of the page before; empty for the first
	Count  bool
}

// parameter is one that a question may have. set reads it; its error says what is wanted.
type parameter struct {
	name string
	set  func(text string) error
}

// parameters are all that a question may have.
func (q *Question) parameters() []parameter {
	f := &q.Filter
	all := []parameter{{"from", instant(&f.From)}, {"to", instant(&f.To)}}
	for _, t := range f.texts() {
		all = append(all, parameter{t.parameter, func(text string) error {
			*t.value = text
			return nil
		}})
	}
	return append(
		all,
		parameter{"archivedFrom", instant(&f.ArchivedFrom)},
		parameter{"archivedTo", instant(&f.ArchivedTo)},
		parameter{"order", func(text string) error {
			f.Ascending = text == "asc"
			return oneOf(text, "asc", "desc")
		}},
		parameter{"limit", func(text string) (err error) {
			if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 {
				return errors.New("want a whole number from 1")
			}
			return nil
		}},
		parameter{"cursor", func(text string) error {
			q.After = text
			return nil
		}},
		parameter{"count", func(text string) error {
			q.Count = text == "true"
			return oneOf(text, "true", "false")
		}},
		parameter{"format", func(text string) error {
			q.Format = Format(text)
			return oneOf(text, string(JSON), string(NDJSON), string(CSV))
		}},
	)
}

// Parameters lists the names that [ParseQuestion] knows.
func Parameters() []string {
	var names []string
	for _, p := range new(Question).parameters() {
		names = append(names, p.name)
	}
	return names
}

// instant reads a bound of a range.
func instant(at *time.Time) func(string) error {
	return func(text string) (err error) {
		if *at, err = time.Parse(time.RFC3339Nano, text); err == nil {
			*at = micros(*at)
			return nil
		}
		if strings.Contains(text, " ") {
			return errors.New("want RFC 3339, such as 2026-11-15T10:30:00Z; the + of a zone is written %2B in a URL")
		}
		return errors.New("want RFC 3339, such as 2026-11-15T10:30:00Z")
	}
}

func oneOf(text string, allowed ...string) error {
	if slices.Contains(allowed, text) {
		return nil
	}
	return fmt.Errorf("want one of %s", strings.Join(allowed, ", "))
}

// ParseQuestion reads a question from its parameters and completes it: a range that isn't given is the 24 hours before to, or now, and format holds where
// none is named. Nothing is passed over, since a filter that is would widen the answer: a parameter that is unknown, empty, repeated or of another form is an
// [InvalidError]. The cursor is judged by the [Reader].
func ParseQuestion(values url.Values, format Format, now time.Time) (Question, error) {
	q := Question{Format: format}
	all := q.parameters()
	for name := range values {
		if !slices.ContainsFunc(all, func(p parameter) bool { return p.name == name }) {
			return q, &InvalidError{clip(name), "there is no such parameter; there are " + strings.Join(Parameters(), ", ")}
		}
	}
	for _, p := range all {
		text, err := Single(values, p.name)
		if err != nil {
			return q, err
		}
		if text == "" {
			continue
		}
		if err := p.set(text); err != nil {
			return q, &InvalidError{p.name, err.Error()}
		}
	}
	return q, q.complete(values, now)
}

// Single returns the value of a parameter, empty where it isn't given. One that is repeated, or is given and empty, is an [InvalidError].
func Single(values url.Values, name string) (string, error) {
	switch all := values[name]; {
	case len(all) == 0:
		return "", nil
	case len(all) > 1:
		return "", &InvalidError{name, "it is given more than once"}
	case all[0] == "":
		return "", &InvalidError{name, "it is empty: leave it out"}
	default:
		return all[0], nil
	}
}

// complete fills in what isn't given, and looks at what depends on the format.
func (q *Question) complete(values url.Values, now time.Time) error {
	f := &q.Filter
	if !values.Has("to") {
		f.To = now.UTC().Truncate(time.Second).Add(time.Second) // the same for all who ask within a second
	}
	if !values.Has("from") {
		f.From = f.To.Add(-DefaultRange)
	}
	if !f.From.Before(f.To) {
		return &InvalidError{"from", fmt.Sprintf("the range is empty: %s is not before to, %s", f.From.Format(time.RFC3339Nano), f.To.Format(time.RFC3339Nano))}
	}
	if _, err := ask(Everything(), *f); err != nil { // here, so that whoever only looks (HEAD), or has no database yet, is told too
		return err
	}
	if q.Format != JSON {
		if q.After != "" {
			return &InvalidError{"cursor", fmt.Sprintf("%s is all of a range and has no pages: continue it by from or to", q.Format)}
		}
		if q.Count {
			return &InvalidError{"count", fmt.Sprintf("%s has no place for it", q.Format)}
		}
		return nil
	}
	if q.Limit == 0 {
		q.Limit = DefaultLimit
	}
	if q.Limit > MaxLimit {
		return &InvalidError{"limit", fmt.Sprintf("a page has at most %d events; ndjson and csv have no such bound", MaxLimit)}
	}
	return nil
}

// ParseInstant reads the timestamp of an event in whatever form it was received: with t and z in either case, and in UTC where it names no zone.
func ParseInstant(text string) (time.Time, error) {
	upper := strings.ToUpper(text)
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if at, err := time.Parse(layout, upper); err == nil {
			return at.UTC(), nil
		}
	}
	return time.Time{}, errors.New("want the timestamp of the event, such as 2026-11-15T10:30:00Z; a + in it is written %2B in a URL")
}

// clip shortens what a stranger sent, to show it.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	if utf8.RuneCountInString(text) > 40 {
		return string([]rune(text)[:40]) + "…"
	}
	return text
}
