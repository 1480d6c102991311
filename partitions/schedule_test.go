package partitions

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPlanDays(t *testing.T) {
	kiritimati := time.FixedZone("+14", 14*3600)
	for _, test := range []struct {
		name     string
		now      time.Time
		existing []Bounds
		detached []Bounds
		ahead    int
		wanted   []time.Time
		want     []Step
	}{
		{name: "over the year's end", now: at("2026-12-31T23:59:59Z"), ahead: 2, want: []Step{
			step("audit_log_2026_12_31", "2026-12-31", "2027-01-01"),
			step("audit_log_2027_01_01", "2027-01-01", "2027-01-02"),
			step("audit_log_2027_01_02", "2027-01-02", "2027-01-03"),
		}},
		{name: "over a leap day", now: at("2024-02-28"), ahead: 2, want: []Step{
			step("audit_log_2024_02_28", "2024-02-28", "2024-02-29"),
			step("audit_log_2024_02_29", "2024-02-29", "2024-03-01"),
			step("audit_log_2024_03_01", "2024-03-01", "2024-03-02"),
		}},
		{name: "no leap day in 2100", now: at("2100-02-28"), ahead: 1, want: []Step{
			step("audit_log_2100_02_28", "2100-02-28", "2100-03-01"),
			step("audit_log_2100_03_01", "2100-03-01", "2100-03-02"),
		}},
		{name: "days are UTC's, whatever now's zone", now: time.Date(2027, 1, 1, 13, 59, 59, 0, kiritimati), want: []Step{
			step("audit_log_2026_12_31", "2026-12-31", "2027-01-01"),
		}},
		{name: "the first instant of a day", now: time.Date(2027, 1, 1, 14, 0, 0, 0, kiritimati), want: []Step{
			step("audit_log_2027_01_01", "2027-01-01", "2027-01-02"),
		}},
		{
			name: "a month in their place means that nothing is missing", now: at("2026-11-28"), ahead: 6,
			existing: []Bounds{part("audit_log_2026_11", "2026-11-01", "2026-12-01")},
			want: []Step{
				step("audit_log_2026_12_01", "2026-12-01", "2026-12-02"),
				step("audit_log_2026_12_02", "2026-12-02", "2026-12-03"),
				step("audit_log_2026_12_03", "2026-12-03", "2026-12-04"),
				step("audit_log_2026_12_04", "2026-12-04", "2026-12-05"),
			},
		},
		{
			name: "what odd partitions leave", now: at("2026-11-05"), ahead: 1,
			existing: []Bounds{
				part("odd", "2026-11-05T06:00:00Z", "2026-11-05T12:00:00Z"),
				part("wide", "2026-11-06T12:00:00Z", "2026-12-05"),
			},
			want: []Step{
				step("audit_log_2026_11_05", "2026-11-05", "2026-11-05T06:00:00Z"),
				step("audit_log_2026_11_05_043200000000", "2026-11-05T12:00:00Z", "2026-11-06"),
				step("audit_log_2026_11_06", "2026-11-06", "2026-11-06T12:00:00Z"),
			},
		},
		{
			name: "history is by the month, and ends today", now: at("2026-11-23T15:00:00Z"), ahead: 1,
			wanted: []time.Time{at("2026-11-03T10:00:00Z"), at("2026-11-22T23:59:59Z"), at("2019-02-11"), at("2026-11-01")},
			want: []Step{
				step("audit_log_2019_02", "2019-02-01", "2019-03-01"),
				step("audit_log_2026_11", "2026-11-01", "2026-11-23"),
				step("audit_log_2026_11_23", "2026-11-23", "2026-11-24"),
				step("audit_log_2026_11_24", "2026-11-24", "2026-11-25"),
			},
		},
		{
			name: "history on the first of a month", now: at("2026-12-01"), wanted: []time.Time{at("2026-11-30T23:59:59Z"), at("2026-12-01")},
			want: []Step{
				step("audit_log_2026_11", "2026-11-01", "2026-12-01"),
				step("audit_log_2026_12_01", "2026-12-01", "2026-12-02"),
			},
		},
		{
			name: "wanted from today on: the day", now: at("2026-11-30T12:00:00Z"), wanted: []time.Time{at("2026-12-02T11:00:00Z"), at("2026-11-30T23:00:00Z")},
			want: []Step{
				step("audit_log_2026_11_30", "2026-11-30", "2026-12-01"),
				step("audit_log_2026_12_02", "2026-12-02", "2026-12-03"),
			},
		},
		{
			name: "history between days", now: at("2026-12-02"), wanted: []time.Time{at("2026-11-25"), at("2026-11-01"), at("2026-11-05"), at("2026-11-30T23:59:59Z")},
			existing: []Bounds{
				part("audit_log_2026_11_05", "2026-11-05", "2026-11-06"),
				part("audit_log_2026_11_20", "2026-11-20", "2026-11-21"),
				part("audit_log_2026_12_02", "2026-12-02", "2026-12-03"),
			},
			want: []Step{
				step("audit_log_2026_11", "2026-11-01", "2026-11-05"),
				step("audit_log_2026_11_21", "2026-11-21", "2026-12-01"),
			},
		},
		{
			name: "a day that is there in part", now: at("2026-12-02"), wanted: []time.Time{at("2026-11-05")}, // the day of an event at noon
			existing: []Bounds{part("morning", "2026-11-05", "2026-11-05T06:00:00Z"), part("audit_log_2026_12_02", "2026-12-02", "2026-12-03")},
			want:     []Step{step("audit_log_2026_11", "2026-11-05T06:00:00Z", "2026-12-01")},
		},
		{
			name: "a day whose name a part of it has", now: at("2026-11-05"),
			existing: []Bounds{part("audit_log_2026_11_05", "2026-11-05T18:00:00Z", "2026-11-07")},
			want:     []Step{step("audit_log_2026_11_05_000000000000", "2026-11-05", "2026-11-05T18:00:00Z")},
		},
		{
			name: "a gap in a month that had one before", now: at("2026-12-02"), wanted: []time.Time{at("2026-11-11T23:00:00Z")},
			existing: []Bounds{
				part("audit_log_2026_11", "2026-11-01", "2026-11-10"), // on demand, when the days began on the 10th
				part("audit_log_2026_11_12", "2026-11-12", "2026-12-01"),
				part("audit_log_2026_12_02", "2026-12-02", "2026-12-03"),
			},
			want: []Step{step("audit_log_2026_11_10", "2026-11-10", "2026-11-12")},
		},
		{
			name: "what can be attached again keeps its range and its name", now: at("2026-12-02"), wanted: []time.Time{at("2026-11-01"), at("2026-11-10"), at("2026-11-11"), at("2026-11-12")},
			existing: []Bounds{part("audit_log_2026_12_02", "2026-12-02", "2026-12-03")},
			detached: []Bounds{part("audit_log_2026_11", "2026-11-01", "2026-11-10"), part("audit_log_2026_11_11", "2026-11-11", "2026-11-12")},
			want: []Step{
				step("audit_log_2026_11_10", "2026-11-10", "2026-11-11"),
				step("audit_log_2026_11_12", "2026-11-12", "2026-12-01"),
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			steps, err := Plan(test.now, Catalog{Partitions: test.existing, Detached: test.detached}, Schedule{Interval: Day, Ahead: test.ahead}, test.wanted...)
			require.NoError(t, err)
			require.Equal(t, test.want, steps)
		})
	}
}

// Months of which days are there already, after a change from days to months.
func TestPlanMonthsAroundDays(t *testing.T) {
	existing := []Bounds{
		part("audit_log_2026_11", "2026-11-01", "2026-11-29"),
		part("audit_log_2026_11_29", "2026-11-29", "2026-11-30"),
		part("audit_log_2026_11_30", "2026-11-30", "2026-12-01"),
		part("audit_log_2026_12_01", "2026-12-01", "2026-12-02"),
		part("audit_log_2026_12_02", "2026-12-02", "2026-12-03"),
	}
	steps, err := Plan(at("2026-11-30"), Catalog{Partitions: existing}, Schedule{Interval: Month, Ahead: 2})
	require.NoError(t, err)
	require.Equal(t, []Step{
		step("audit_log_2026_12", "2026-12-03", "2027-01-01"),
		step("audit_log_2027_01", "2027-01-01", "2027-02-01"),
	}, steps)
}

func TestPlanNamesADayInTheWay(t *testing.T) {
	steps, err := Plan(at("2026-11-23"), Catalog{Others: []string{"audit_log_2026_11_24"}}, Schedule{Interval: Day, Ahead: 2})
	var taken *NameTakenError
	require.ErrorAs(t, err, &taken)
	require.Equal(t, step("audit_log_2026_11_24", "2026-11-24", "2026-11-25"), taken.Step)
	require.Equal(t, []Step{step("audit_log_2026_11_23", "2026-11-23", "2026-11-24"), step("audit_log_2026_11_25", "2026-11-25", "2026-11-26")}, steps)
}

func TestSuperseded(t *testing.T) {
	months := []Bounds{ // in any order
		part("audit_log_2027_02", "2027-02-01", "2027-03-01"),
		part("audit_log_2026_11", "2026-11-01", "2026-12-01"),
		part("audit_log_2026_12", "2026-12-01", "2027-01-01"),
		part("audit_log_2027_01", "2027-01-01", "2027-02-01"),
	}
	december, january, february := months[2], months[3], months[0]
	for _, test := range []struct {
		name     string
		now      time.Time
		schedule Schedule
		existing []Bounds
		want     []Bounds
	}{
		{"months are wanted", at("2026-11-10"), Schedule{Interval: Month, Ahead: 6}, months, nil},
		{"months are the default", at("2026-11-10"), Schedule{Ahead: 6}, months, nil},
		{"days are wanted", at("2026-11-10"), Schedule{Interval: Day, Ahead: 6}, months, []Bounds{december, january, february}},
		{"the next month is just out of events' reach, with a margin", at("2026-11-28"), Schedule{Interval: Day, Ahead: 1}, months, []Bounds{december, january, february}},
		{"the next month is soon in their reach", at("2026-11-28T00:00:01Z"), Schedule{Interval: Day, Ahead: 1}, months, []Bounds{january, february}},
		{"the next month begins after the days ahead", at("2026-11-24T23:59:59Z"), Schedule{Interval: Day, Ahead: 6}, months, []Bounds{december, january, february}},
		{"the next month is among the days ahead", at("2026-11-25"), Schedule{Interval: Day, Ahead: 6}, months, []Bounds{january, february}},
		{"many days ahead", at("2026-11-25"), Schedule{Interval: Day, Ahead: 90}, months, nil},
		{"what is no month ahead stays", at("2026-11-10"), Schedule{Interval: Day, Ahead: 6}, []Bounds{
			part("day", "2026-12-01", "2026-12-02"),
			part("hours", "2026-12-02", "2026-12-02T03:00:00Z"),
			part("year", "2027-01-01", "2028-01-01"),
			{Name: "default", Default: true},
			part("rest", "2029-01-01", ""),
			part("past", "", "2026-01-01"),
			{Name: "on its way out", From: at("2028-01-01"), To: at("2028-02-01"), Detaching: true},
		}, nil},
		{"a month's rest, after days", at("2026-11-10"), Schedule{Interval: Day, Ahead: 6}, []Bounds{part("audit_log_2026_11_20", "2026-11-20", "2026-12-01")}, []Bounds{part("audit_log_2026_11_20", "2026-11-20", "2026-12-01")}},
	} {
		t.Run(test.name, func(t *testing.T) { require.Equal(t, test.want, Superseded(test.now, test.existing, test.schedule)) })
	}
}
