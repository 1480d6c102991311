package partitions

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func text(s string) *string { return &s }

func TestKeeps(t *testing.T) {
	seeded := newRules(map[string]int{"standard": 2555, "phi_extended": 2555, "confidential": 1825, "minimal": 90, "7": 10}, nil, 30)
	for _, c := range []struct {
		policy *string
		days   int
		by     string
	}{
		{text("standard"), 2555, "standard"},
		{text("minimal"), 90, "minimal"},
		{text("400"), 400, "400"},
		{text("36500"), 36500, "36500"},
		{text("1"), 30, "1"},                  // never below the least
		{text("7"), 30, "7"},                  // a number is a number, whatever the table says of it
		{text("36501"), 2555, "phi_extended"}, // not one that a producer could have sent: unknown, so the longest
		{text("0"), 2555, "phi_extended"},
		{text("-5"), 2555, "phi_extended"},
		{text("+5"), 2555, "phi_extended"},
		{text("007"), 2555, "phi_extended"},
		{text("9 "), 2555, "phi_extended"},
		{text("٣"), 2555, "phi_extended"},
		{text("Standard"), 2555, "phi_extended"},
		{text(""), 2555, "phi_extended"},
		{nil, 2555, "phi_extended"},
	} {
		days, by := seeded.keeps(c.policy)
		require.Equal(t, c.days, days, c)
		require.Equal(t, c.by, by, c)
	}

	// What is not active shortens nothing: it counts as the longest of all, as an unknown one does.
	fewer := newRules(map[string]int{"minimal": 90}, map[string]int{"standard": 2555, "old": 400}, 30)
	for policy, want := range map[string]int{"minimal": 90, "standard": 2555, "old": 2555, "unheard of": 2555} {
		days, by := fewer.keeps(&policy)
		require.Equal(t, want, days, policy)
		require.Contains(t, []string{"minimal", "standard"}, by)
	}

	none := newRules(nil, map[string]int{"standard": 2555}, 30)
	days, _ := none.keeps(text("standard"))
	require.Zero(t, days, "nothing says when these expire")
	days, _ = none.keeps(nil)
	require.Zero(t, days)
	days, by := none.keeps(text("90"))
	require.Equal(t, 90, days)
	require.Equal(t, "90", by)
}

func TestFate(t *testing.T) {
	r := newRules(map[string]int{"standard": 2555, "minimal": 90, "eternal": 2147483647, "short": 10}, nil, 30)
	march := Bounds{Name: "m", From: at("2016-03-01"), To: at("2016-04-01")}
	for _, c := range []struct {
		name    string
		bounds  Bounds
		present []*string
		holds   []int64
		now     string
		due     string // of the fate; empty: never
		goes    bool
		why     string
	}{
		{"not yet", march, []*string{text("minimal")}, nil, "2016-06-29T23:59:59.999999Z", "2016-06-30", false, "kept until 2016-06-30T00:00:00Z, for 90 days by policy minimal"},
		{"to the moment", march, []*string{text("minimal")}, nil, "2016-06-30", "2016-06-30", true, "expired on 2016-06-30T00:00:00Z, after 90 days by policy minimal"},
		{"the longest decides", march, []*string{text("minimal"), text("91")}, nil, "2016-06-30", "2016-07-01", false, "kept until 2016-07-01T00:00:00Z, for 91 days by policy 91"},
		{"the least", march, []*string{text("short")}, nil, "2016-05-01", "2016-05-01", true, "expired on 2016-05-01T00:00:00Z, after 30 days by policy short"},
		{"empty", march, nil, nil, "2016-05-01", "2016-05-01", true, "it is empty, and kept for 30 days"},
		{"held", march, []*string{text("minimal")}, []int64{7, 4}, "2020-01-01", "2016-06-30", false, "expired on 2016-06-30T00:00:00Z, after 90 days by policy minimal; held by legal holds 4, 7"},
		{"empty and held", march, nil, []int64{7}, "2020-01-01", "2016-05-01", false, "it is empty, and kept for 30 days; held by legal hold 7"},
		{"for as good as ever", march, []*string{text("eternal")}, nil, "2020-01-01", "", false, "never, as good as: kept for 2147483647 days by policy eternal"},
		{"no end", Bounds{Name: "m", From: at("2016-03-01")}, nil, nil, "2020-01-01", "", false, "never: it has no end"},
		{"default", Bounds{Name: "m", Default: true}, nil, nil, "2020-01-01", "", false, "never: a DEFAULT partition takes rows of any time"},
		{"no beginning", Bounds{Name: "m", To: at("2016-04-01")}, []*string{text("90")}, nil, "2016-06-30", "2016-06-30", true, "expired on 2016-06-30T00:00:00Z, after 90 days by policy 90"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := r.fate(c.bounds, c.present, c.holds, at(c.now))
			want := time.Time{}
			if c.due != "" {
				want = at(c.due)
			}
			require.Equal(t, want, f.Due)
			require.Equal(t, c.goes, f.Expired(at(c.now)))
			require.Equal(t, c.why, f.Why)
		})
	}
	f := newRules(nil, nil, 30).fate(march, []*string{text("90"), text("what a producer sent")}, nil, at("2100-01-01"))
	require.True(t, f.Due.IsZero())
	require.NotContains(t, f.Why, "what a producer sent")
	require.NotContains(t, r.fate(march, []*string{text("what a producer sent")}, nil, at("2100-01-01")).Why, "what a producer sent")
}

// A partition that may go has only rows that may, and one whose rows can't have expired doesn't go; by arithmetic of its own.
func TestFateModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		active := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c"}), rapid.OneOf(rapid.IntRange(1, 4000), rapid.IntRange(1, 2147483647))).Draw(rt, "active")
		o := &oracle{least: rapid.IntRange(1, 100).Draw(rt, "least"), policies: active}
		from := at("2015-01-01").AddDate(0, rapid.IntRange(0, 24).Draw(rt, "month"), 0)
		b := Bounds{Name: "p", From: from, To: from.AddDate(0, 1, 0)}
		names := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d", "1", "31", "3650", ""}), rapid.ID).Draw(rt, "present")
		now := b.To.Add(time.Duration(rapid.Int64Range(-100*86400, 5000*86400).Draw(rt, "after")) * time.Second)
		var present []*string
		longest := o.least
		for _, name := range names {
			present = append(present, &name)
			if name == "" {
				present[len(present)-1] = nil
			}
			if longest >= 0 {
				longest = max(longest, o.days(name))
			}
			if o.days(name) == 0 {
				longest = -1
			}
		}
		f := newRules(active, nil, o.least).fate(b, present, nil, now)
		days := int64(now.Sub(b.To) / (24 * time.Hour))
		require.Equal(rt, longest >= 0 && now.After(b.To) && days >= int64(longest), f.Expired(now), "%+v", f)
	})
}

func TestCutoff(t *testing.T) {
	last, some := cutoff(at("2016-03-01T12:00:00Z"), 1)
	require.True(t, some)
	require.Equal(t, at("2016-02-29").Add(-time.Microsecond), last)
	last, _ = cutoff(at("2016-03-01"), 1)
	require.Equal(t, at("2016-02-29").Add(-time.Microsecond), last)
	for _, days := range []int{0, 2147483647, 800_000} {
		_, some = cutoff(at("2016-03-01"), days)
		require.False(t, some, days)
	}
	// What it gives up has expired, and what it keeps had not a day ago.
	rapid.Check(t, func(rt *rapid.T) {
		now := at("2016-03-01").Add(time.Duration(rapid.Int64Range(0, 1e15).Draw(rt, "now")) * time.Microsecond)
		row := now.Add(-time.Duration(rapid.Int64Range(0, 1e15).Draw(rt, "age")) * time.Microsecond)
		days := rapid.IntRange(1, 36500).Draw(rt, "days")
		last, some := cutoff(now, days)
		require.True(rt, some)
		if row.After(last) {
			require.True(rt, expiry(row, days).After(now.AddDate(0, 0, -1)))
		} else {
			require.False(rt, expiry(row, days).After(now))
		}
	})
}
