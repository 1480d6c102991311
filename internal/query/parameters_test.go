package query_test

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/query"
)

var asked = time.Date(2026, 11, 15, 10, 30, 0, 123456789, time.UTC)

func TestParseQuestion(t *testing.T) {
	q, err := query.ParseQuestion(url.Values{}, query.JSON, asked)
	require.NoError(t, err)
	now := time.Date(2026, 11, 15, 10, 30, 1, 0, time.UTC)
	require.Equal(t, query.Question{Format: query.JSON, Limit: 100, Filter: query.Filter{From: now.Add(-24 * time.Hour), To: now}}, q)

	q, err = query.ParseQuestion(url.Values{}, query.CSV, asked)
	require.NoError(t, err)
	require.Equal(t, query.Question{Format: query.CSV, Filter: query.Filter{From: now.Add(-24 * time.Hour), To: now}}, q)

	q, err = query.ParseQuestion(url.Values{"to": {"2026-01-02T00:00:00+01:00"}}, query.JSON, asked)
	require.NoError(t, err)
	require.Equal(t, time.Date(2026, 1, 1, 23, 0, 0, 0, time.UTC), q.Filter.To)
	require.Equal(t, q.Filter.To.Add(-24*time.Hour), q.Filter.From)

	// Everything at once, each with a value of its own.
	q, err = query.ParseQuestion(url.Values{
		"from": {"2026-01-01T00:00:00.0000001Z"}, "to": {"2026-01-02T00:00:00Z"}, "principalId": {"p"}, "organizationId": {"o"}, "action": {"a"}, "status": {"success"},
		"hash": {strings.Repeat("A", 64)}, "targetResourceType": {"t"}, "targetResourceId": {"i"}, "correlationId": {"c"}, "dataClassification": {"phi"},
		"retentionPolicy": {"r"}, "archivedFrom": {"2026-01-03T00:00:00Z"}, "archivedTo": {"2026-01-04T00:00:00Z"}, "order": {"asc"}, "limit": {"7"},
		"cursor": {"x"}, "count": {"true"}, "format": {"json"},
	}, query.NDJSON, asked)
	require.NoError(t, err)
	day := func(d int) time.Time { return time.Date(2026, 1, d, 0, 0, 0, 0, time.UTC) }
	require.Equal(t, query.Question{
		Format: query.JSON, Limit: 7, After: "x", Count: true,
		Filter: query.Filter{
			From: day(1).Add(time.Microsecond), To: day(2), PrincipalID: "p", OrganizationID: "o", Action: "a", Status: "success", Hash: strings.Repeat("A", 64),
			TargetResourceType: "t", TargetResourceID: "i", CorrelationID: "c", DataClassification: "phi", RetentionPolicy: "r", ArchivedFrom: day(3), ArchivedTo: day(4), Ascending: true,
		},
	}, q)
}

func TestParseQuestionRefuses(t *testing.T) {
	for _, c := range []struct{ query, parameter, problem string }{
		{"principalID=x", "principalID", "no such parameter"},
		{"offset=3", "offset", "no such parameter"},
		{"access_token=x", "access_token", "no such parameter"},
		{"=x", "", "no such parameter"},
		{strings.Repeat("n", 99) + "=x", strings.Repeat("n", 40) + "…", "no such parameter"},
		{"action=", "action", "empty"},
		{"action", "action", "empty"},
		{"action=a&action=a", "action", "more than once"},
		{"from=2026-01-01", "from", "RFC 3339"},
		{"from=2026-01-01T00:00:00", "from", "RFC 3339"},
		{"from=2026-01-01T00:00:00+01:00", "from", "%2B"},
		{"to=yesterday", "to", "RFC 3339"},
		{"from=2027-01-01T00:00:00Z", "from", "empty"},
		{"from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "from", "empty"},
		{"archivedTo=x", "archivedTo", "RFC 3339"},
		{"order=ASC", "order", "asc, desc"},
		{"limit=0", "limit", "from 1"},
		{"limit=-1", "limit", "from 1"},
		{"limit=1e2", "limit", "from 1"},
		{"limit=99999999999999999999", "limit", "from 1"},
		{"limit=1001", "limit", "1000"},
		{"count=1", "count", "true, false"},
		{"format=xml", "format", "ndjson"},
		{"format=csv&cursor=x", "cursor", "no pages"},
		{"format=ndjson&count=true", "count", "no place"},
	} {
		values, err := url.ParseQuery(c.query)
		require.NoError(t, err)
		_, err = query.ParseQuestion(values, query.JSON, asked)
		var invalid *query.InvalidError
		require.ErrorAs(t, err, &invalid, c.query)
		require.Equal(t, c.parameter, invalid.Parameter, c.query)
		require.Contains(t, invalid.Problem, c.problem, c.query)
	}
}

func TestParseInstant(t *testing.T) {
	for text, want := range map[string]time.Time{
		"2026-11-15T10:30:00Z":                time.Date(2026, 11, 15, 10, 30, 0, 0, time.UTC),
		"2026-11-15t10:30:00.123456789z":      time.Date(2026, 11, 15, 10, 30, 0, 123456789, time.UTC),
		"2026-11-15T10:30:00.5":               time.Date(2026, 11, 15, 10, 30, 0, 500000000, time.UTC),
		"2026-11-15T10:30:00.000+01:00":       time.Date(2026, 11, 15, 9, 30, 0, 0, time.UTC),
		"2026-11-15T00:00:00.999999999-23:59": time.Date(2026, 11, 15, 23, 59, 0, 999999999, time.UTC),
	} {
		at, err := query.ParseInstant(text)
		require.NoError(t, err, text)
		require.Equal(t, want, at, text)
	}
	for _, text := range []string{"", "2026-11-15", "1763202600", "2026-11-15 10:30:00Z"} {
		_, err := query.ParseInstant(text)
		require.Error(t, err, text)
	}
}

// FuzzParseQuestion: a question is read as a whole or refused by the name of a parameter; what was read is complete, and nothing that was given is passed over.
func FuzzParseQuestion(f *testing.F) {
	f.Add("action=a&from=2026-01-01T00:00:00Z&limit=5")
	f.Add("format=csv&status=success&order=asc")
	f.Add("action=a&action=b&x=%00")
	f.Add("archivedFrom=2026-01-01T00:00:00.0000001%2B01:00&cursor=%ff")
	f.Fuzz(func(t *testing.T, text string) {
		values, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		q, err := query.ParseQuestion(values, query.JSON, asked)
		if err != nil {
			var invalid *query.InvalidError
			if !errors.As(err, &invalid) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		for name, all := range values {
			if len(all) != 1 || all[0] == "" || !slices.Contains(query.Parameters(), name) {
				t.Fatalf("%q was passed over in %q", name, text)
			}
		}
		if !q.Filter.From.Before(q.Filter.To) || q.Limit < 0 || q.Format == query.JSON && (q.Limit < 1 || q.Limit > query.MaxLimit) {
			t.Fatalf("%q gives %+v", text, q)
		}
		if values.Get("action") != q.Filter.Action || values.Get("organizationId") != q.Filter.OrganizationID || values.Get("cursor") != q.After {
			t.Fatalf("%q gives %+v", text, q)
		}
	})
}
