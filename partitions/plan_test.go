package partitions

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// at parses a UTC time such as 2024-02-29 or 2024-02-29T12:00:00Z; "" is the zero time.
func at(text string) time.Time {
	if text == "" {
		return time.Time{}
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC()
		}
	}
	panic("not a time: " + text)
}

func part(name, from, to string) Bounds { return Bounds{Name: name, From: at(from), To: at(to)} }

func step(name, from, to string) Step { return Step{Name: name, From: at(from), To: at(to)} }

func TestPlan(t *testing.T) {
	kiritimati := time.FixedZone("+14", 14*3600)
	for _, test := range []struct {
		name     string
		now      time.Time
		existing []Bounds
		ahead    int
		wanted   []time.Time
		want     []Step
	}{
		{name: "over the year's end", now: at("2026-11-23"), ahead: 2, want: []Step{
			step("audit_log_2026_11", "2026-11-01", "2026-12-01"),
			step("audit_log_2026_12", "2026-12-01", "2027-01-01"),
			step("audit_log_2027_01", "2027-01-01", "2027-02-01"),
		}},
		{name: "a month after the 31st is the next month", now: at("2027-01-31"), ahead: 1, want: []Step{
			step("audit_log_2027_01", "2027-01-01", "2027-02-01"),
			step("audit_log_2027_02", "2027-02-01", "2027-03-01"),
		}},
		{name: "leap day", now: at("2024-02-29"), want: []Step{step("audit_log_2024_02", "2024-02-01", "2024-03-01")}},
		{name: "months are UTC's, whatever now's zone", now: time.Date(2027, 1, 1, 13, 59, 59, 0, kiritimati), want: []Step{
			step("audit_log_2026_12", "2026-12-01", "2027-01-01"),
		}},
		{name: "the first instant of a month", now: time.Date(2027, 1, 1, 14, 0, 0, 0, kiritimati), want: []Step{
			step("audit_log_2027_01", "2027-01-01", "2027-02-01"),
		}},
		{
			name: "wanted months, each once and by time", now: at("2026-11-23"),
			wanted: []time.Time{at("2026-11-02"), at("2019-07-31T23:59:59Z"), at("2019-07-01"), time.Date(2019, 8, 1, 9, 0, 0, 0, kiritimati)},
			want:   []Step{step("audit_log_2019_07", "2019-07-01", "2019-08-01"), step("audit_log_2026_11", "2026-11-01", "2026-12-01")},
		},
		{
			name: "the same bounds under another name will do", now: at("2026-11-23"), ahead: 1,
			existing: []Bounds{part("november", "2026-11-01", "2026-12-01")},
			want:     []Step{step("audit_log_2026_12", "2026-12-01", "2027-01-01")},
		},
		{
			name: "covered by one wide partition", now: at("2026-11-23"), ahead: 6,
			existing: []Bounds{part("all", "2026-01-01", "2028-01-01")},
		},
		{name: "covered by MINVALUE", now: at("2026-11-23"), existing: []Bounds{part("old", "", "2027-01-01")}},
		{name: "covered by MAXVALUE", now: at("2026-11-23"), ahead: 6, existing: []Bounds{part("new", "2026-01-01", "")}},
		{
			name: "a pending detach still has its range", now: at("2026-11-23"),
			existing: []Bounds{{Name: "audit_log_2026_11", From: at("2026-11-01"), To: at("2026-12-01"), Detaching: true}},
		},
		{
			name: "what odd partitions leave", now: at("2026-11-23"), ahead: 2,
			existing: []Bounds{ // in any order
				part("wide", "2026-12-20T12:00:00Z", "2027-01-05"),
				part("old", "", "2026-11-10"),
			},
			want: []Step{
				step("audit_log_2026_11", "2026-11-10", "2026-12-01"),
				step("audit_log_2026_12", "2026-12-01", "2026-12-20T12:00:00Z"),
				step("audit_log_2027_01", "2027-01-05", "2027-02-01"),
			},
		},
		{
			name: "days, and gaps between them", now: at("2026-11-23"),
			existing: []Bounds{
				part("audit_log_2026_11_01", "2026-11-01", "2026-11-02"),
				part("audit_log_2026_11_03", "2026-11-03", "2026-11-04"),
				part("audit_log_2026_11_04", "2026-11-04", "2026-11-04T06:00:00Z"),
				part("audit_log_2026_11_28", "2026-11-05", "2026-11-28"),
			},
			want: []Step{
				step("audit_log_2026_11", "2026-11-02", "2026-11-03"),
				step("audit_log_2026_11_04_021600000000", "2026-11-04T06:00:00Z", "2026-11-05"),
				step("audit_log_2026_11_28_000000000000", "2026-11-28", "2026-12-01"),
			},
		},
		{
			name: "a partition with a misleading name covers what its bounds say", now: at("2026-11-23"),
			existing: []Bounds{part("audit_log_2026_11", "2020-01-01", "2020-02-01")},
			want:     []Step{step("audit_log_2026_11_01", "2026-11-01", "2026-12-01")},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			steps, err := Plan(test.now, Catalog{Partitions: test.existing}, Schedule{Ahead: test.ahead}, test.wanted...)
			require.NoError(t, err)
			require.Equal(t, test.want, steps)
		})
	}
}

func TestPlanNamesWhatIsInTheWay(t *testing.T) {
	steps, err := Plan(at("2026-11-23"), Catalog{Others: []string{"audit_log_2026_12", "audit_log_2020_01"}}, Schedule{Ahead: 2})
	var taken *NameTakenError
	require.ErrorAs(t, err, &taken)
	require.Equal(t, step("audit_log_2026_12", "2026-12-01", "2027-01-01"), taken.Step)
	require.ErrorContains(t, err, "audit_log_2026_12 exists")
	require.Equal(t, []Step{
		step("audit_log_2026_11", "2026-11-01", "2026-12-01"),
		step("audit_log_2027_01", "2027-01-01", "2027-02-01"),
	}, steps, "the others are planned all the same")
}

func TestPlanRefusesBesideADefaultPartition(t *testing.T) {
	steps, err := Plan(at("2026-11-23"), Catalog{Partitions: []Bounds{{Name: "rest", Default: true}}}, Schedule{Ahead: 6})
	var def *DefaultPartitionError
	require.ErrorAs(t, err, &def)
	require.Equal(t, "rest", def.Name)
	require.Empty(t, steps)
}

func TestAllow(t *testing.T) {
	now := at("2026-11-23T10:00:00Z")
	horizon := 30 * 24 * time.Hour // reaches into October, whose whole month is allowed
	allowed, err := allow(now, horizon, []time.Time{at("2026-10-01"), at("2026-11-25T10:00:00Z")})
	require.NoError(t, err)
	require.Len(t, allowed, 2)

	before, after := at("2026-09-30T23:59:59Z"), at("2026-11-25T10:00:00Z").Add(time.Microsecond)
	allowed, err = allow(now, horizon, []time.Time{before, now, after, at("3026-01-01")})
	require.Equal(t, []time.Time{now}, allowed)
	var refusal *RangeError
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, RangeError{
		Refused: []time.Time{before, after, at("3026-01-01")},
		Since:   at("2026-10-01"), Till: at("2026-11-25T10:00:00Z"),
	}, *refusal)
	require.NotContains(t, err.Error(), "3026", "timestamps are event content")
}

// Whatever partitions there are, carrying out the plan leaves no overlap and no gap in the months concerned, uses each name
// once, and leaves nothing to plan.
func TestPlanProperties(t *testing.T) {
	start := at("2023-11-01")
	rapid.Check(t, func(t *rapid.T) {
		now := start.Add(time.Duration(rapid.Int64Range(0, 400*24).Draw(t, "now")) * time.Hour).In(
			time.FixedZone("", rapid.IntRange(-12, 14).Draw(t, "zone")*3600))
		ahead := rapid.IntRange(0, 8).Draw(t, "ahead")
		catalog := Catalog{Partitions: drawPartitions(t, start)}
		var wanted []time.Time
		for range rapid.IntRange(0, 3).Draw(t, "wanted") {
			wanted = append(wanted, start.Add(time.Duration(rapid.Int64Range(-1000*24, 1000*24).Draw(t, "at"))*time.Hour))
		}
		if rapid.Bool().Draw(t, "someone else's tables") {
			for range 4 {
				month := start.AddDate(0, rapid.IntRange(0, 20).Draw(t, "month"), 0)
				catalog.Others = append(catalog.Others, month.Format("audit_log_2006_01"))
			}
		}

		steps, err := Plan(now, catalog, Schedule{Ahead: ahead}, wanted...)
		after := Catalog{Partitions: append([]Bounds(nil), catalog.Partitions...), Others: catalog.Others}
		names := map[string]bool{}
		for _, b := range catalog.Partitions {
			names[b.Name] = true
		}
		for _, other := range catalog.Others {
			names[other] = true
		}
		for _, s := range steps {
			if names[s.Name] {
				t.Fatalf("%s is taken", s.Name)
			}
			names[s.Name] = true
			if !s.From.Before(s.To) || monthOf(s.From) != monthOf(s.To.Add(-1)) {
				t.Fatalf("%s is empty or more than a month", s)
			}
			for _, b := range after.Partitions {
				if (b.To.IsZero() || s.From.Before(b.To)) && b.From.Before(s.To) {
					t.Fatalf("%s overlaps %+v", s, b)
				}
			}
			after.Partitions = append(after.Partitions, Bounds{Name: s.Name, From: s.From, To: s.To})
		}

		if again, _ := Plan(now, after, Schedule{Ahead: ahead}, wanted...); len(again) != 0 {
			t.Fatalf("still planned: %v", again)
		}
		if err != nil { // only names in the way may leave gaps
			if len(catalog.Others) == 0 {
				t.Fatal(err)
			}
			return
		}
		// Every hour of the months concerned: bounds are drawn on the hour.
		instants := append([]time.Time(nil), wanted...)
		for n := range ahead + 1 {
			month := monthOf(now).AddDate(0, n, 0)
			for h := month; h.Before(month.AddDate(0, 1, 0)); h = h.Add(time.Hour) {
				instants = append(instants, h)
			}
		}
		for _, instant := range instants {
			if !covered(after.Partitions, instant) {
				t.Fatalf("nothing takes %s", instant)
			}
		}
	})
}

// drawPartitions draws partitions that don't overlap, months and days and odd ones, some unbounded, in any order.
func drawPartitions(t *rapid.T, start time.Time) []Bounds {
	var all []Bounds
	from := time.Time{} // MINVALUE
	if rapid.Bool().Draw(t, "from the start") {
		from = start
	}
	for n := range rapid.IntRange(0, 12).Draw(t, "partitions") {
		var to time.Time
		base := from
		if base.IsZero() {
			base = start
		}
		switch rapid.SampledFrom([]string{"month", "day", "odd", "hole", "rest"}).Draw(t, "kind") {
		case "month":
			to = monthOf(base).AddDate(0, 1, 0)
		case "day":
			to = base.Truncate(24*time.Hour).AddDate(0, 0, 1)
		case "odd":
			to = base.Add(time.Duration(rapid.IntRange(1, 2000).Draw(t, "hours")) * time.Hour)
		case "hole":
			from = base.Add(time.Duration(rapid.IntRange(1, 2000).Draw(t, "hours")) * time.Hour)
			continue
		case "rest": // MAXVALUE
			all = append(all, Bounds{Name: "rest", From: from})
			return all
		}
		name := base.Format(rapid.SampledFrom([]string{"audit_log_2006_01", "audit_log_2006_01_02", "odd"}).Draw(t, "name"))
		for _, b := range all {
			if b.Name == name || name == "odd" {
				name = "odd_" + string(rune('a'+n))
			}
		}
		all = append(all, Bounds{Name: name, From: from, To: to})
		from = to
	}
	return rapid.Permutation(all).Draw(t, "order")
}

func covered(all []Bounds, instant time.Time) bool {
	for _, b := range all {
		if !instant.Before(b.From) && (b.To.IsZero() || instant.Before(b.To)) {
			return true
		}
	}
	return false
}
