package query_test

import (
	"encoding/csv"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"auditsink/internal/query"
)

func pointer[T any](v T) *T { return &v }

// evidence is an event whose every member differs from the others, and is hard to carry.
func evidence(text string) query.Event {
	return query.Event{
		ID: 9007199254740993, Timestamp: "2026-11-15t10:30:00.123456789+01:00", TTL: pointer("ttl"), PrincipalID: pointer("=p"), OrganizationID: pointer("o,\"r\"\r\ng"),
		Action: text, TargetResourceType: pointer("type"), TargetResourceID: pointer(""), Status: "success", OutcomeDescription: pointer("<ok> & \u2028 🩺\n\r\t"),
		Hash: pointer(strings.Repeat("ab", 32)), HashAlgorithm: pointer("SHA-256"), EventVersion: pointer("1.0"), CorrelationID: pointer(" c "),
		DataClassification: pointer("PHI"), RetentionPolicy: pointer("-1"), ProcessingLatency: pointer(int32(-5)), ArchivedAt: pointer(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)),
		Details: json.RawMessage(`{"n":1e300,"m":1.10,"a":"\u0041","b":[null]}`), RecordedAt: time.Date(2026, 11, 15, 10, 30, 1, 0, time.UTC), LaneID: pointer(int32(3)), LaneOffset: pointer(int64(-1)),
	}
}

// members are the names of an event's members, in order.
func members() (names []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[query.Event]()) {
		names = append(names, f.Tag.Get("json"))
	}
	return names
}

// TestCSV: every member is a column, in the order of JSON; what a strict reader reads is what is stored, but for the ' before formulas.
func TestCSV(t *testing.T) {
	e := evidence("a\r\nb")
	text, err := query.CSV.Append([]byte(query.CSV.Header()), &e)
	require.NoError(t, err)
	require.Equal(t, strings.Join(members(), ",")+"\r\n"+`9007199254740993,2026-11-15t10:30:00.123456789+01:00,ttl,"'=p","o,""r""`+"\r\n"+`g","a`+"\r\n"+`b",type,,success,"<ok> & `+
		"\u2028 🩺\n\r\t"+`",`+strings.Repeat("ab", 32)+`,SHA-256,1.0," c ",PHI,"'-1",-5,2026-01-02T03:04:05.000006Z,"{""n"":1e300,""m"":1.10,""a"":""\u0041"",""b"":[null]}",2026-11-15T10:30:01Z,3,-1`+"\r\n",
		string(text))

	empty, err := query.CSV.Append(nil, &query.Event{ID: 1, Timestamp: "t", Action: "a", Status: "s"})
	require.NoError(t, err)
	require.Equal(t, "1,t,,,,a,,,s,,,,,,,,,,,0001-01-01T00:00:00Z,,\r\n", string(empty))
}

// TestCSVInjection: whatever a spreadsheet may run has a ' before it, and what it can't run has none.
func TestCSVInjection(t *testing.T) {
	for _, text := range []string{
		"=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "=cmd|' /C calc'!A0", " =1", "  \u00a0=1", `"=1`, `'=1`, ` "'=1`, "\ufeff=1", "\u200b=1", "\x00=1", "\v=1",
		"＝1", "＋1", "－1", "＠x", "﹦1", "“=1", "\u202e=1", "−1", "\u2003@x",
	} {
		require.Equal(t, "'"+text, cell(t, text), "%q", text)
	}
	for _, text := range []string{"", "a=1", "1-1", "1", "data.read", "mail@x", "a\n=1", " ", "'", `"`, "(=1)", "ü=", "\ufeff", "#=1"} {
		require.Equal(t, text, cell(t, text), "%q", text)
	}
}

// cell writes a text as the action of an event and reads it back as a strict reader does.
func cell(t testing.TB, text string) string {
	e := query.Event{ID: 1, Timestamp: "t", Action: text, Status: "s"}
	line, err := query.CSV.Append(nil, &e)
	require.NoError(t, err)
	fields := parseCSV(t, string(line))
	require.Len(t, fields, 22)
	return fields[5]
}

// parseCSV reads one record by RFC 4180. Package csv can't be used: it makes \n of \r\n within a cell.
func parseCSV(t testing.TB, line string) (fields []string) {
	rest := line
	for {
		var field strings.Builder
		if strings.HasPrefix(rest, `"`) {
			rest = rest[1:]
			for {
				i := strings.IndexByte(rest, '"')
				require.GreaterOrEqual(t, i, 0, "%q", line)
				field.WriteString(rest[:i])
				rest = rest[i+1:]
				if !strings.HasPrefix(rest, `"`) {
					break
				}
				field.WriteByte('"')
				rest = rest[1:]
			}
		} else {
			i := strings.IndexAny(rest, ",\r\n\"")
			require.GreaterOrEqual(t, i, 0, "%q", line)
			field.WriteString(rest[:i])
			rest = rest[i:]
		}
		fields = append(fields, field.String())
		if rest == "\r\n" {
			return fields
		}
		require.True(t, strings.HasPrefix(rest, ","), "%q", line)
		rest = rest[1:]
	}
}

// FuzzCSV: any text can be had back, by the rule of docs/reading.md; and where a cell begins like a formula, spaces and quotes aside, it begins with '.
func FuzzCSV(f *testing.F) {
	for _, text := range []string{"=1", "'=1", "a,\"b\"\r\n", " '+", "''", "\u200b@"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := cell(t, text)
		begin := strings.TrimLeftFunc(got, func(r rune) bool {
			return strings.ContainsRune("\"'`“”‘’", r) || !strings.ContainsRune("\t\r\n", r) && (unicode.IsSpace(r) || unicode.In(r, unicode.Cc, unicode.Cf))
		})
		risky := begin != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠﹦﹢﹣﹫−", []rune(begin)[0])
		if risky {
			if got[0] != '\'' {
				t.Fatalf("%q is written %q", text, got)
			}
			got = got[1:]
		}
		if got != text {
			t.Fatalf("%q is written %q", text, got)
		}
		// And another reader finds as many cells.
		e := query.Event{ID: 1, Timestamp: "t", Action: text, Status: "s"}
		line, err := query.CSV.Append(nil, &e)
		require.NoError(t, err)
		records, err := csv.NewReader(strings.NewReader(string(line))).ReadAll()
		require.NoError(t, err)
		require.Len(t, records, 1)
		require.Len(t, records[0], 22)
	})
}

// TestNDJSON: a line an event, unaltered.
func TestNDJSON(t *testing.T) {
	e := evidence("line\nfeed")
	text, err := query.NDJSON.Append([]byte("before\n"), &e)
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(text), "\n"))
	line := strings.TrimPrefix(string(text), "before\n")
	require.Contains(t, line, `"details":{"n":1e300,"m":1.10,"a":"\u0041","b":[null]}`)
	require.Contains(t, line, `<ok> & `)
	var back query.Event
	require.NoError(t, json.Unmarshal([]byte(line), &back))
	require.Equal(t, e, back)
	require.Empty(t, query.NDJSON.Header())

	_, err = query.NDJSON.Append(nil, &query.Event{Details: json.RawMessage(`{`)})
	require.Error(t, err)
	_, err = query.JSON.Append(nil, &e)
	require.Error(t, err)
}
