package query

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Format is a form in which events are given out.
type Format string

// The formats. JSON is a page; the others hold one event a line (or record) and are streamed.
const (
	JSON   Format = "json"
	NDJSON Format = "ndjson"
	CSV    Format = "csv"
)

// csvColumns are the columns of CSV, named and ordered as the members in JSON.
var csvColumns = []struct {
	name string
	cell func(dst []byte, e *Event) []byte
}{
	{"id", func(dst []byte, e *Event) []byte { return strconv.AppendInt(dst, e.ID, 10) }},
	{"timestamp", func(dst []byte, e *Event) []byte { return appendCell(dst, e.Timestamp) }},
	{"ttl", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.TTL) }},
	{"principalId", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.PrincipalID) }},
	{"organizationId", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.OrganizationID) }},
	{"action", func(dst []byte, e *Event) []byte { return appendCell(dst, e.Action) }},
	{"targetResourceType", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.TargetResourceType) }},
	{"targetResourceId", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.TargetResourceID) }},
	{"status", func(dst []byte, e *Event) []byte { return appendCell(dst, e.Status) }},
	{"outcomeDescription", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.OutcomeDescription) }},
	{"hash", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.Hash) }},
	{"hashAlgorithm", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.HashAlgorithm) }},
	{"eventVersion", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.EventVersion) }},
	{"correlationId", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.CorrelationID) }},
	{"dataClassification", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.DataClassification) }},
	{"retentionPolicy", func(dst []byte, e *Event) []byte { return appendOptional(dst, e.RetentionPolicy) }},
	{"processingLatency", func(dst []byte, e *Event) []byte { return appendNumber(dst, e.ProcessingLatency) }},
	{"archivedAt", func(dst []byte, e *Event) []byte {
		if e.ArchivedAt == nil {
			return dst
		}
		return e.ArchivedAt.AppendFormat(dst, time.RFC3339Nano)
	}},
	{"details", func(dst []byte, e *Event) []byte { return appendCell(dst, string(e.Details)) }},
	{"recordedAt", func(dst []byte, e *Event) []byte { return e.RecordedAt.AppendFormat(dst, time.RFC3339Nano) }},
	{"laneId", func(dst []byte, e *Event) []byte { return appendNumber(dst, e.LaneID) }},
	{"laneOffset", func(dst []byte, e *Event) []byte { return appendNumber(dst, e.LaneOffset) }},
}

// Header is what stands before the events: the names of the columns in CSV.
func (f Format) Header() string {
	if f != CSV {
		return ""
	}
	var names []string
	for _, c := range csvColumns {
		names = append(names, c.name)
	}
	return strings.Join(names, ",") + "\r\n"
}

// Append adds an event to dst as one line of NDJSON or one record of CSV, with its end.
func (f Format) Append(dst []byte, e *Event) ([]byte, error) {
	switch f {
	case NDJSON:
		line := bytes.NewBuffer(dst)
		encoder := json.NewEncoder(line)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(e); err != nil {
			return dst, fmt.Errorf("write event %d as JSON: %w", e.ID, err)
		}
		return line.Bytes(), nil
	case CSV:
		for i, c := range csvColumns {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = c.cell(dst, e)
		}
		return append(dst, '\r', '\n'), nil
	default:
		return dst, fmt.Errorf("%s is no format of single events", f)
	}
}

// appendCell adds a cell of CSV (RFC 4180) that somebody else wrote. Package encoding/csv isn't used: with the line ends of the RFC it alters those within
// a cell. What a spreadsheet would run as a formula gets a ' before it.
func appendCell(dst []byte, text string) []byte {
	risky := runs(text)
	if !risky && !strings.ContainsAny(text, ",;\"\r\n\t ") {
		return append(dst, text...)
	}
	dst = append(dst, '"')
	if risky {
		dst = append(dst, '\'')
	}
	return append(append(dst, strings.ReplaceAll(text, `"`, `""`)...), '"')
}

// appendOptional adds a text, nothing where there is none.
func appendOptional(dst []byte, text *string) []byte {
	if text == nil {
		return dst
	}
	return appendCell(dst, *text)
}

// appendNumber adds a number of ours, which no spreadsheet runs, even one below 0.
func appendNumber[N int32 | int64](dst []byte, n *N) []byte {
	if n == nil {
		return dst
	}
	return strconv.AppendInt(dst, int64(*n), 10)
}

// runs tells whether a spreadsheet may take a cell for a formula: it begins with one of = + - @ TAB CR LF, also in the wide and small forms that some
// take for the same, or does so after spaces, quotes and what can't be seen, which some drop.
func runs(text string) bool {
	for _, r := range text {
		switch r {
		case '=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠', '﹦', '﹢', '﹣', '﹫', '−':
			return true
		case '"', '\'', '`', '“', '”', '‘', '’':
		default:
			if !unicode.IsSpace(r) && !unicode.In(r, unicode.Cc, unicode.Cf) {
				return false
			}
		}
	}
	return false
}
