package query

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// The limits of a question.
const (
	MaxLimit = 1000       // events a page
	MaxCount = 10_000_000 // events that are counted at most
)

// question is a filter and a scope that have been checked and brought into one form: two that ask the same are equal.
type question struct {
	scope  Scope
	filter Filter
}

// text is a condition of a filter that compares a column with a text.
type text struct {
	parameter, column string
	value             *string
	most              int // characters
}

// texts lists the conditions of a filter on texts, always in this order.
func (f *Filter) texts() [10]text {
	return [...]text{
		{"principalId", "principal_id", &f.PrincipalID, 255},
		{"organizationId", "organization_id", &f.OrganizationID, 255},
		{"action", "action", &f.Action, 255},
		{"status", "status", &f.Status, 20},
		{"hash", "hash", &f.Hash, 64},
		{"targetResourceType", "target_resource_type", &f.TargetResourceType, 255},
		{"targetResourceId", "target_resource_id", &f.TargetResourceID, 255},
		{"correlationId", "correlation_id", &f.CorrelationID, 255},
		{"dataClassification", "data_classification", &f.DataClassification, 20},
		{"retentionPolicy", "retention_policy", &f.RetentionPolicy, 50},
	}
}

// identifies tells whether the filter has a value that few events have in common.
func (f *Filter) identifies() bool {
	return f.Hash != "" || f.CorrelationID != "" || f.TargetResourceID != ""
}

// ask checks a question. Its error is an [InvalidError]: what the database would refuse never gets there.
func ask(s Scope, f Filter) (question, error) {
	for _, bound := range []struct {
		parameter string
		at        *time.Time
		required  bool
	}{
		{"from", &f.From, true},
		{"to", &f.To, true},
		{"archivedFrom", &f.ArchivedFrom, false},
		{"archivedTo", &f.ArchivedTo, false},
	} {
		switch {
		case !bound.at.IsZero():
			if bound.at.Before(beginning) || !bound.at.Before(end) {
				return question{}, &InvalidError{bound.parameter, "must be within the years 1 to 9999"}
			}
			*bound.at = micros(*bound.at)
		case bound.required:
			return question{}, &InvalidError{bound.parameter, "is required"}
		}
	}
	if !f.From.Before(f.To) {
		return question{}, &InvalidError{"from", "must be before to"}
	}
	if !f.ArchivedFrom.IsZero() && !f.ArchivedTo.IsZero() && !f.ArchivedFrom.Before(f.ArchivedTo) {
		return question{}, &InvalidError{"archivedFrom", "must be before archivedTo"}
	}
	for _, t := range f.texts() {
		if problem := unfit(*t.value, t.most); problem != "" {
			return question{}, &InvalidError{t.parameter, problem}
		}
	}
	f.DataClassification, f.Hash = strings.ToUpper(f.DataClassification), strings.ToLower(f.Hash)
	switch {
	case f.Status != "" && !slices.Contains([]string{"attempt", "success", "failure"}, f.Status):
		return question{}, &InvalidError{"status", "must be attempt, success or failure"}
	case f.DataClassification != "" && !slices.Contains([]string{"PUBLIC", "INTERNAL", "CONFIDENTIAL", "PHI"}, f.DataClassification):
		return question{}, &InvalidError{"dataClassification", "must be PUBLIC, INTERNAL, CONFIDENTIAL or PHI"}
	case f.Hash != "" && (len(f.Hash) != 64 || strings.Trim(f.Hash, "0123456789abcdef") != ""):
		return question{}, &InvalidError{"hash", "must be 64 hex digits"}
	}
	return question{s.usable(), f}, nil
}

// unfit tells what is wrong with a text, nothing for one that a column may hold.
func unfit(s string, most int) string {
	switch {
	case !utf8.ValidString(s):
		return "must be valid UTF-8"
	case strings.ContainsRune(s, 0):
		return "must not contain the character U+0000"
	case utf8.RuneCountInString(s) > most:
		return fmt.Sprintf("must have at most %d characters", most)
	}
	return ""
}

// usable is the scope without names that no event can have, of which Postgres would refuse some.
func (s Scope) usable() Scope {
	if s.all {
		return Scope{all: true}
	}
	return Scope{organizations: slices.DeleteFunc(slices.Clone(s.organizations), func(name string) bool { return name == "" || unfit(name, 255) != "" })}
}

// empty tells that nothing is within the scope.
func (s Scope) empty() bool { return !s.all && len(s.organizations) == 0 }

// micros rounds an instant up to the microsecond. Stored ones are whole microseconds, so that an interval holds the same events as before.
func micros(at time.Time) time.Time {
	floor := at.UTC().Truncate(time.Microsecond)
	if floor.Before(at) {
		floor = floor.Add(time.Microsecond)
	}
	return floor
}

// appendTo appends the question in a form that no other question has: every part has its length before it, or is of fixed length.
func (q question) appendTo(b []byte) []byte {
	for _, at := range []time.Time{q.filter.From, q.filter.To, q.filter.ArchivedFrom, q.filter.ArchivedTo} {
		b = binary.BigEndian.AppendUint64(b, uint64(at.UnixMicro()))
	}
	b = append(b, flag(q.filter.Ascending), flag(q.scope.all))
	for _, t := range q.filter.texts() {
		b = appendText(b, *t.value)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(q.scope.organizations))) //nolint:gosec // few
	for _, name := range q.scope.organizations {
		b = appendText(b, name)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) //nolint:gosec // at most 255 characters
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// position is the key of an event, after which a page begins.
type position struct {
	at int64 // microseconds since 1970
	id int64
}

// The parts of a cursor: a version, the position, and a digest of both and the question. It guards against mistakes: who makes one up gets no more than the question allows.
const (
	cursorVersion = 1
	cursorLen     = 1 + 8 + 8 + 16
)

// cursor is the position as it is given to whoever asked.
func (q question) cursor(p position) string {
	b := make([]byte, 0, cursorLen)
	b = append(b, cursorVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(p.at)) //nolint:gosec // the same 64 bits
	b = binary.BigEndian.AppendUint64(b, uint64(p.id)) //nolint:gosec // the same 64 bits
	digest := sha256.Sum256(q.appendTo(slices.Clone(b)))
	return base64.RawURLEncoding.EncodeToString(append(b, digest[:16]...))
}

// position reads a cursor of this question, nil where there is none.
func (q question) position(cursor string) (*position, error) {
	if cursor == "" {
		return nil, nil //nolint:nilnil // the first page begins after nothing
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) != cursorLen || b[0] != cursorVersion {
		return nil, &InvalidError{"after", "is not a cursor: take it from the page before as it is"}
	}
	p := &position{at: int64(binary.BigEndian.Uint64(b[1:])), id: int64(binary.BigEndian.Uint64(b[9:]))} //nolint:gosec // the same 64 bits
	if q.cursor(*p) != cursor {
		return nil, &InvalidError{"after", "is damaged, or the cursor of another question: ask for the same range, filters and order as for the page before"}
	}
	if at := time.UnixMicro(p.at); at.Before(q.filter.From) || !at.Before(q.filter.To) {
		return nil, &InvalidError{"after", "lies outside the range"}
	}
	return p, nil
}
