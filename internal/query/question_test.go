package query_test

import (
	"encoding/base64"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"auditsink/internal/query"
)

// TestInvalid: a bad question is an InvalidError that names what is wrong, whatever is asked of it; and one at the limits is answered.
func TestInvalid(t *testing.T) {
	b := newBed(t, 18)
	r := b.reader()
	year := func(y int) time.Time { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC) }
	good := func() query.Filter { return query.Filter{From: year(2024), To: year(2025)} }
	for name, c := range map[string]struct {
		parameter string
		set       func(*query.Filter)
	}{
		"no from":                  {"from", func(f *query.Filter) { f.From = time.Time{} }},
		"no to":                    {"to", func(f *query.Filter) { f.To = time.Time{} }},
		"nothing between":          {"from", func(f *query.Filter) { f.To = f.From }},
		"nothing stored between":   {"from", func(f *query.Filter) { f.From = f.From.Add(1); f.To = f.From.Add(1) }},
		"backwards":                {"from", func(f *query.Filter) { f.From, f.To = f.To, f.From }},
		"before time":              {"from", func(f *query.Filter) { f.From = year(-5000) }},
		"before the year 1":        {"from", func(f *query.Filter) { f.From = year(1).Add(-1) }},
		"after time":               {"to", func(f *query.Filter) { f.To = year(300_000) }},
		"after the year 9999":      {"to", func(f *query.Filter) { f.To = year(10_000).Add(time.Second) }},
		"archived backwards":       {"archivedFrom", func(f *query.Filter) { f.ArchivedFrom, f.ArchivedTo = f.To, f.From }},
		"archived before time":     {"archivedFrom", func(f *query.Filter) { f.ArchivedFrom = year(-5000) }},
		"archived after time":      {"archivedTo", func(f *query.Filter) { f.ArchivedTo = year(300_000) }},
		"status":                   {"status", func(f *query.Filter) { f.Status = "Success" }},
		"classification":           {"dataClassification", func(f *query.Filter) { f.DataClassification = "SECRET" }},
		"classification of blanks": {"dataClassification", func(f *query.Filter) { f.DataClassification = " " }},
		"hash short":               {"hash", func(f *query.Filter) { f.Hash = strings.Repeat("a", 63) }},
		"hash long":                {"hash", func(f *query.Filter) { f.Hash = strings.Repeat("a", 65) }},
		"hash no hex":              {"hash", func(f *query.Filter) { f.Hash = strings.Repeat("g", 64) }},
		"principal long":           {"principalId", func(f *query.Filter) { f.PrincipalID = strings.Repeat("€", 256) }},
		"organization NUL":         {"organizationId", func(f *query.Filter) { f.OrganizationID = "a\x00" }},
		"action no UTF-8":          {"action", func(f *query.Filter) { f.Action = "\xff" }},
		"resource type surrogate":  {"targetResourceType", func(f *query.Filter) { f.TargetResourceType = "\xed\xa0\x80" }},
		"resource id long":         {"targetResourceId", func(f *query.Filter) { f.TargetResourceID = strings.Repeat("x", 256) }},
		"correlation id NUL":       {"correlationId", func(f *query.Filter) { f.CorrelationID = "\x00" }},
		"policy long":              {"retentionPolicy", func(f *query.Filter) { f.RetentionPolicy = strings.Repeat("x", 51) }},
	} {
		t.Run(name, func(t *testing.T) {
			f := good()
			c.set(&f)
			_, events := r.Events(t.Context(), query.Everything(), f, 1, "")
			_, count := r.Count(t.Context(), query.Organizations("a"), f, 1)
			export := r.Export(t.Context(), query.Scope{}, f, func(query.Event) error { return nil })
			for _, err := range []error{events, count, export} {
				invalid, ok := errors.AsType[*query.InvalidError](err)
				require.True(t, ok, "%v", err)
				require.Equal(t, c.parameter, invalid.Parameter)
			}
		})
	}
	for name, set := range map[string]func(*query.Filter){
		"all time":      func(f *query.Filter) { f.From, f.To = year(1).Add(time.Second), year(10_000).Add(-time.Second) },
		"a microsecond": func(f *query.Filter) { f.To = f.From.Add(time.Microsecond) },
		"a nanosecond":  func(f *query.Filter) { f.To = f.From.Add(time.Nanosecond) },
		"longest texts": func(f *query.Filter) {
			f.PrincipalID, f.RetentionPolicy = strings.Repeat("🩺", 255), strings.Repeat("€", 50)
		},
		"quotes":           func(f *query.Filter) { f.Action = `'; DROP TABLE audit_log; --` },
		"dollars":          func(f *query.Filter) { f.Action, f.PrincipalID = `$1`, `\`; f.CorrelationID = "%_\n\t\u2028" },
		"hash of any case": func(f *query.Filter) { f.Hash = strings.Repeat("aF", 32) },
		"archived one way": func(f *query.Filter) { f.ArchivedTo = year(2020) },
	} {
		t.Run(name, func(t *testing.T) {
			f := good()
			set(&f)
			_, err := r.Events(t.Context(), query.Organizations("'", "{", "}", ",", `"`, `\`, "NULL"), f, query.MaxLimit, "")
			require.NoError(t, err)
			_, err = r.Count(t.Context(), query.Everything(), f, query.MaxCount)
			require.NoError(t, err)
		})
	}
	for _, limit := range []int{-1, 0, query.MaxLimit + 1, math.MaxInt} {
		_, err := r.Events(t.Context(), query.Everything(), good(), limit, "")
		require.ErrorContains(t, err, "limit: ")
	}
	for _, most := range []int64{-1, 0, query.MaxCount + 1, math.MaxInt64} {
		_, err := r.Count(t.Context(), query.Everything(), good(), most)
		require.ErrorContains(t, err, "most: ")
	}
	for _, at := range []time.Time{year(-1), year(10_000), year(400_000)} {
		_, err := r.Event(t.Context(), query.Everything(), 1, at)
		require.ErrorContains(t, err, "timestamp: ")
	}
	for _, id := range []int64{math.MinInt64, -1, 0, math.MaxInt64} {
		_, err := r.Event(t.Context(), query.Everything(), id, time.Time{})
		require.ErrorIs(t, err, query.ErrNotFound)
	}
}

// TestScope: who may see nothing gets nothing, however it is asked; and a name that no event can have is no error.
func TestScope(t *testing.T) {
	b := newBed(t, 18, full(stamp(canonical)), `{"timestamp":"`+stamp(canonical)+`","action":"a","status":"attempt"}`, `{"timestamp":"`+stamp(canonical)+`","action":"a","status":"attempt","organizationId":""}`)
	r := b.reader()
	see := func(s query.Scope) (ids []int64) {
		f := thisDay()
		f.Ascending = true
		page, err := r.Events(t.Context(), s, f, 10, "")
		require.NoError(t, err)
		require.NotNil(t, page.Events, "an array in JSON")
		for _, e := range page.Events {
			ids = append(ids, e.ID)
		}
		var exported []int64
		require.NoError(t, r.Export(t.Context(), s, f, func(e query.Event) error { exported = append(exported, e.ID); return nil }))
		require.Equal(t, ids, exported)
		count, err := r.Count(t.Context(), s, f, 10)
		require.NoError(t, err)
		require.Equal(t, query.Count{Count: int64(len(ids)), Exact: true}, count)
		for id := range int64(3) {
			for _, at := range []time.Time{{}, b.timestamp(id + 1)} {
				_, err := r.Event(t.Context(), s, id+1, at)
				if slices.Contains(ids, id+1) {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, query.ErrNotFound)
				}
			}
		}
		return ids
	}
	require.Empty(t, see(query.Scope{}))
	require.Empty(t, see(query.Organizations()))
	require.Empty(t, see(query.Organizations("")))
	require.Empty(t, see(query.Organizations("O\"1", "o\"1 ", "o%", "\x00", "\xff", strings.Repeat("x", 300))))
	require.Equal(t, []int64{1}, see(query.Organizations("other", "o\"1", "\x00", "\xff", strings.Repeat("x", 300))))
	require.Len(t, see(query.Everything()), 3)

	f := thisDay()
	f.OrganizationID = "o\"1"
	page, err := r.Events(t.Context(), query.Organizations("other"), f, 10, "")
	require.NoError(t, err)
	require.Empty(t, page.Events, "a filter doesn't widen the scope")
}

func (b *bed) timestamp(id int64) (at time.Time) {
	b.Helper()
	require.NoError(b, b.pool.QueryRow(b.Context(), `SELECT timestamp FROM audit_log WHERE id = $1`, id).Scan(&at))
	return at
}

// TestCursor: a cursor is good for the question that it belongs to, and for no other.
func TestCursor(t *testing.T) {
	b, _ := newModelBed(t, 18)
	r := b.reader()
	scope := query.Organizations("A", "B")
	f := query.Filter{From: time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), Action: "read"}
	page, err := r.Events(t.Context(), scope, f, 10, "")
	require.NoError(t, err)
	require.NotEmpty(t, page.Next)
	invalid := func(scope query.Scope, f query.Filter, after string) {
		t.Helper()
		_, err := r.Events(t.Context(), scope, f, 10, after)
		invalid, ok := errors.AsType[*query.InvalidError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, "after", invalid.Parameter)
	}
	_, err = r.Events(t.Context(), query.Organizations("B", "A", "B"), f, 20, page.Next)
	require.NoError(t, err, "the same question, with another limit")
	for _, other := range []query.Scope{query.Everything(), query.Organizations("A"), query.Organizations("A", "B", "C"), query.Organizations("AB")} {
		invalid(other, f, page.Next)
	}
	for _, set := range []func(*query.Filter){
		func(f *query.Filter) { f.Ascending = true }, func(f *query.Filter) { f.Action = "" }, func(f *query.Filter) { f.Action = "write" }, func(f *query.Filter) { f.PrincipalID = "read" },
		func(f *query.Filter) { f.Action, f.PrincipalID = "", "read" }, func(f *query.Filter) { f.From = f.From.Add(time.Microsecond) }, func(f *query.Filter) { f.To = f.To.Add(time.Hour) },
		func(f *query.Filter) { f.ArchivedFrom = f.From }, func(f *query.Filter) { f.ArchivedTo = f.From },
	} {
		other := f
		set(&other)
		invalid(scope, other, page.Next)
	}
	for _, damaged := range []string{"x", page.Next[1:], page.Next[:len(page.Next)-1], page.Next + "A", page.Next + "=", "\x00", strings.Repeat("A", 1<<20), strings.ToLower(page.Next)} {
		invalid(scope, f, damaged)
	}
	raw, err := base64.RawURLEncoding.DecodeString(page.Next)
	require.NoError(t, err)
	for i := range len(raw) * 8 {
		flipped := slices.Clone(raw)
		flipped[i/8] ^= 1 << (i % 8)
		invalid(scope, f, base64.RawURLEncoding.EncodeToString(flipped))
	}
}

// TestKeys: two questions have one key in the cache if they are the same question, and only then.
func TestKeys(t *testing.T) {
	at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	word := rapid.SampledFrom([]string{"", "", "a", "b", "ab", "aa", "\x01", "\x01a"}) // of few letters, so that they could run into one another
	type asked struct {
		everything bool
		names      []string
		filter     query.Filter
		limit      int
		most       int64
	}
	one := rapid.Custom(func(t *rapid.T) asked {
		a := asked{everything: rapid.Bool().Draw(t, "everything"), limit: rapid.IntRange(0, 2).Draw(t, "limit")}
		if a.limit == 0 {
			a.most = rapid.Int64Range(1, 2).Draw(t, "most")
		}
		if !a.everything {
			a.names = slices.DeleteFunc(rapid.SliceOfN(word, 0, 3).Draw(t, "names"), func(name string) bool { return name == "" })
		}
		a.filter = query.Filter{
			From: at, To: at.Add(time.Duration(rapid.IntRange(1, 2).Draw(t, "to")) * time.Hour), Ascending: rapid.Bool().Draw(t, "ascending"),
			PrincipalID: word.Draw(t, "principal"), OrganizationID: word.Draw(t, "organization"), Action: word.Draw(t, "action"), TargetResourceType: word.Draw(t, "type"),
			TargetResourceID: word.Draw(t, "id"), CorrelationID: word.Draw(t, "correlation"), RetentionPolicy: word.Draw(t, "policy"),
		}
		return a
	})
	keyOf := func(t require.TestingT, a asked) [32]byte {
		scope := query.Organizations(a.names...)
		if a.everything {
			scope = query.Everything()
		}
		key, err := query.KeyOf(scope, a.filter, a.limit, "", a.most)
		require.NoError(t, err)
		return key
	}
	rapid.Check(t, func(t *rapid.T) {
		x := one.Draw(t, "x")
		y := x
		if rapid.Bool().Draw(t, "another") {
			y = one.Draw(t, "y")
		} else { // the same, asked otherwise, or with one thing changed
			y.names = slices.Concat(x.names, x.names)
			slices.Reverse(y.names)
			y.filter.From = x.filter.From.In(time.FixedZone("", 3600)).Add(-999 * time.Nanosecond)
			texts := []*string{&y.filter.PrincipalID, &y.filter.OrganizationID, &y.filter.Action, &y.filter.TargetResourceType, &y.filter.TargetResourceID, &y.filter.CorrelationID}
			if n := rapid.IntRange(-1, len(texts)-2).Draw(t, "swapped"); n >= 0 {
				*texts[n], *texts[n+1] = *texts[n+1], *texts[n]
			}
		}
		set := func(names []string) []string { slices.Sort(names); return slices.Compact(names) }
		same := x.everything == y.everything && slices.Equal(set(slices.Clone(x.names)), set(slices.Clone(y.names))) && x.limit == y.limit && x.most == y.most
		xf, yf := x.filter, y.filter
		yf.From = xf.From
		same = same && xf == yf
		require.Equal(t, same, keyOf(t, x) == keyOf(t, y))
	})
}
