package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"auditsink/internal/indexes"
	"auditsink/internal/testkit"
)

// TestGrowthAndCurves runs them, small: none fails, so each event was one row. Then the charts are there, and can be drawn again from the raw figures.
func TestGrowthAndCurves(t *testing.T) {
	out, again := t.TempDir(), t.TempDir()
	o, err := parse([]string{
		"-scenarios", "growth,lanes,workers,partitions", "-events", "2000", "-indexed-events", "2000", "-rounds", "1", "-growth-events", "4000", "-growth-slice", "2000",
		"-curve-lanes", "4,16", "-curve-workers", "1,3", "-curve-partitions", "1,6", "-set", "AUDITSINK_FLUSH_ROWS=50", "-out", out,
	})
	require.NoError(t, err)
	o.growth.variants, o.curves.variants = []string{allIndexes, hotIndexes}, []string{noIndex}
	require.NoError(t, run(t.Context(), o))

	raw, err := os.ReadFile(filepath.Join(out, "growth-lanes-workers-partitions.json"))
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(raw, &r))
	require.Len(t, r.Growth, 2)
	for _, f := range r.Growth {
		sides := []growthSide{f.Ceiling, f.Worker}
		if f.Variant == allIndexes {
			sides = append(sides, *f.Debezium)
		} else {
			require.Nil(t, f.Debezium)
		}
		part := 2000 / len(sides) / 4 * 4
		require.Equal(t, 2*part*len(sides), f.Events)
		for _, side := range sides {
			require.Len(t, side.Slices, 2, f.Variant)
			for i, s := range side.Slices {
				require.Equal(t, i+1, s.Slice)
				require.EqualValues(t, part, s.Rows)
				require.Positive(t, s.Rate)
				require.Positive(t, s.WALBytes)
				require.Positive(t, s.IndexBytes)
				require.Positive(t, s.TableBytes)
			}
		}
	}
	require.InDelta(t, 1, r.Growth[0].ToAll, 1e-9)
	require.Positive(t, r.Growth[1].ToAll)
	require.Positive(t, r.Growth[1].ToDebezium)
	require.Empty(t, r.Growth[0].Builds)
	builds := r.Growth[1].Builds
	require.Len(t, builds, 2)
	require.Equal(t, indexes.Full, builds[0].Profile)
	require.Equal(t, 16, builds[0].Indexes)
	require.Positive(t, builds[0].ToImmediate)
	require.Equal(t, indexes.Lean, builds[1].Profile)
	require.Equal(t, 6, builds[1].Indexes)
	require.Zero(t, builds[1].ToImmediate, "lean wasn't measured")
	require.Greater(t, builds[0].IndexBytes, builds[1].IndexBytes)

	var places []string
	for _, f := range r.CurveMedians {
		places = append(places, f.Curve+" "+f.label())
		require.Equal(t, noIndex, f.Variant)
		require.Equal(t, 2000, f.Events)
		require.Positive(t, f.Ceiling.Whole)
		require.Positive(t, f.CPUSeconds)
	}
	require.Equal(t, []string{
		"lanes 4", "lanes 16", "workers 1", "workers 3", "partitions 1, rows in one", "partitions 6, rows in one", "partitions 6, rows in all",
	}, places)

	require.NoError(t, run(t.Context(), options{draw: []string{filepath.Join(out, "growth-lanes-workers-partitions.json")}, out: again}))
	for _, name := range []string{"growth", "growth-ratio", "growth-wal", "growth-indexes", "lanes-none", "lanes-ratio", "workers-none", "partitions-none"} {
		first, err := os.ReadFile(filepath.Join(out, name+".svg"))
		require.NoError(t, err)
		second, err := os.ReadFile(filepath.Join(again, name+".svg"))
		require.NoError(t, err)
		require.Equal(t, string(first), string(second))
	}
	require.NoFileExists(t, filepath.Join(out, "throughput.svg"), "it wasn't measured")
}

// TestJoin: the rounds of several runs are one run's, with medians of all.
func TestJoin(t *testing.T) {
	folder, joined := t.TempDir(), t.TempDir()
	var paths []string
	for i, rate := range []float64{100, 400, 300} {
		r := report{Facts: []fact{{"date", fmt.Sprint(i)}, {"machine", "the same"}}}
		for _, variant := range []string{noIndex, allIndexes} {
			r.Runs = append(r.Runs, figures{Variant: variant, Round: 1, Events: 1000, Ceilings: []rates{{500, 500}}, Worker: rates{rate, rate}})
			side := growthSide{Rate: rate, Slices: []growthFigure{{Slice: 1, Rows: 1000, Rate: rate}}}
			r.Growth = append(r.Growth, growthFigures{Variant: variant, Round: 1, Slice: 1000, Ceiling: side, Worker: side, Debezium: &side})
		}
		paths = append(paths, filepath.Join(folder, fmt.Sprintf("g%d.json", i)))
		require.NoError(t, r.write(paths[i]))
	}
	require.NoError(t, redraw(paths, joined))
	raw, err := os.ReadFile(filepath.Join(joined, "g0.json"))
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(raw, &r))
	require.Equal(t, []fact{{"date", "0"}, {"machine", "the same"}, {"date (2)", "1"}, {"date (3)", "2"}}, r.Facts)
	var rounds []string
	for _, f := range r.Runs {
		rounds = append(rounds, fmt.Sprint(f.Variant, f.Round, " ", f.Worker.Steady))
	}
	require.Equal(t, []string{"none1 100", "none2 400", "none3 300", "all1 100", "all2 400", "all3 300"}, rounds)
	for i := range 2 {
		require.InDelta(t, 300, r.Medians[i].Worker.Steady, 1e-9)
		require.InDelta(t, 0.6, r.Medians[i].Ratio.Steady, 1e-9)
		require.InDelta(t, 300, r.GrowthMedians[i].Worker.Rate, 1e-9)
		require.Equal(t, []float64{1}, r.GrowthMedians[i].DebeziumRatios, "which the files lack")
	}
	require.FileExists(t, filepath.Join(joined, "growth.svg"))

	require.ErrorContains(t, redraw(paths, folder), "g0.json would be written over")
	other := report{Runs: []figures{{Variant: noIndex, Round: 1, Events: 1000, Ceilings: []rates{{1, 1}, {1, 1}}, Worker: rates{1, 1}}}}
	require.NoError(t, other.write(paths[1]))
	require.ErrorContains(t, redraw(paths, joined), "g1.json to those of")
}

// TestSource: two sources make the same rows, whatever the slices, each of its lane in order, and hand over the events that a topic gets.
func TestSource(t *testing.T) {
	begin := time.Now()
	when := func(i int) time.Time { return begin.Add(time.Duration(i) * growthPeriod) }
	none := func(_, _ []byte) {}
	events := [][]byte{}
	whole, err := newSource(3, when).encode(100, func(_, value []byte) { events = append(events, value) })
	require.NoError(t, err)
	require.Len(t, whole, 3)
	require.Len(t, events, 100)
	s := newSource(3, when)
	first, err := s.encode(60, none)
	require.NoError(t, err)
	second, err := s.encode(40, none)
	require.NoError(t, err)
	head, end := len("PGCOPY\n\xff\r\n\x00")+8, 2
	for lane := range whole {
		joined := append(bytes.Clone(first[lane][:len(first[lane])-end]), second[lane][head:]...)
		require.Equal(t, whole[lane], joined, lane)
	}
	other := newSource(3, when)
	for i := range 100 {
		lane, rec := other.next()
		require.Equal(t, i%3, lane)
		require.EqualValues(t, i/3, rec.Offset)
		require.Equal(t, events[i], rec.Value)
	}
}

// TestInMonths: each lane has as many events of each month, and all are of the partitions that are made for them.
func TestInMonths(t *testing.T) {
	const lanes, n, events = 4, 24, 4 * 24 * 50
	b := &bench{options: options{lanes: lanes}, kafka: testkit.Kafka(t), postgres: testkit.PostgresServerFor(t, 18)}
	l, err := b.preloadFrom(t.Context(), testkit.Name(t), newSource(lanes, inMonths(n, lanes)), events)
	require.NoError(t, err)
	l.months = n - 1
	require.NoError(t, b.onTable(t.Context(), l, noIndex, func(db *database) error {
		_, err := copyAll(t.Context(), db, l, 2)
		require.NoError(t, err)
		var months, least, most int
		require.NoError(t, db.conn.QueryRow(t.Context(), `SELECT count(DISTINCT tableoid), min(rows), max(rows)
			FROM (SELECT tableoid, count(*) AS rows FROM audit_log GROUP BY tableoid, lane_id) s`).Scan(&months, &least, &most))
		require.Equal(t, n, months)
		require.Equal(t, 50, least)
		require.Equal(t, 50, most)
		return nil
	}))
}

func TestPaceOf(t *testing.T) {
	at := func(seconds float64, stored int64) point { return point{time.Unix(0, int64(seconds*1e9)), stored} }
	// A start of two seconds doesn't count, nor does the last batch, for which the sink has waited.
	require.InDelta(t, 450, paceOf([]point{at(0, 0), at(2, 50), at(3, 500), at(4, 950), at(9, 1000)}), 1e-9)
	// Too few commits to tell.
	require.InDelta(t, 100, paceOf([]point{at(0, 0), at(10, 1000)}), 1e-9)
	require.InDelta(t, 100, paceOf([]point{at(0, 0), at(4, 900), at(10, 1000)}), 1e-9)
}

func TestGrowthSlices(t *testing.T) {
	progress := func(perSecond int64) (all []point) {
		for i := range int64(21) {
			all = append(all, point{time.Unix(i, 0), i * perSecond})
		}
		return all
	}
	var s growthSide
	s.add(1, progress(50), mark{wal: 100}, mark{600, 10500, 21000})
	s.add(2, progress(25), mark{}, mark{})
	require.Equal(t, growthFigure{Slice: 1, Rows: 1000, Seconds: 20, Rate: 50, Micros: 20000, WALBytes: 500, TableBytes: 10500, IndexBytes: 21000}, s.Slices[0])
	require.InDelta(t, 37.5, s.Rate, 1e-9)
	require.InDelta(t, 40, s.Seconds, 1e-9)

	f := growthFigures{Events: 3000, Worker: s, Builds: []buildFigures{{Seconds: 20}}}
	f.Ceiling.add(1, progress(100), mark{}, mark{})
	f.Ceiling.add(2, progress(100), mark{}, mark{})
	f.compare()
	require.InDelta(t, 0.375, f.Ratio, 1e-9)
	require.InDeltaSlice(t, []float64{0.5, 0.25}, f.Ratios, 1e-9)
	require.InDelta(t, 30, f.Builds[0].Rate, 1e-9)
}

func TestGrowthMedians(t *testing.T) {
	run := func(variant string, round int, rate float64) growthFigures {
		f := growthFigures{Variant: variant, Round: round, Ratio: rate / 100, Worker: growthSide{Rate: rate, Seconds: 1 / rate}, Ceiling: growthSide{Rate: 100}, Ratios: []float64{rate}}
		f.Worker.Slices = []growthFigure{{Slice: 1, Rows: 5, Rate: rate, WALBytes: int64(rate)}}
		f.Ceiling.Slices = []growthFigure{{Slice: 1, Rows: 5, Rate: 100}}
		return f
	}
	deferred := run(hotIndexes, 1, 90)
	deferred.Builds = []buildFigures{{Profile: indexes.Full, Rate: 60}, {Profile: indexes.Lean, Rate: 80}}
	runs := []growthFigures{run(allIndexes, 1, 10), deferred, run(allIndexes, 2, 30), run(allIndexes, 3, 20)}
	runs[0].Debezium = &growthSide{Rate: 15, Slices: []growthFigure{{Slice: 1, Rows: 5, Rate: 15}}}
	runs[2].Debezium, runs[3].Debezium = runs[0].Debezium, runs[0].Debezium
	for i, ratio := range map[int]float64{0: 0.3, 2: 0.1, 3: 0.2} {
		runs[i].DebeziumRatios = []float64{ratio}
	}
	compareGrowth(runs)
	require.InDelta(t, 9, runs[1].ToAll, 1e-9)
	require.InDelta(t, 6, runs[1].ToDebezium, 1e-9)
	require.InDelta(t, 6, runs[1].Builds[0].ToImmediate, 1e-9)
	require.Zero(t, runs[1].Builds[1].ToImmediate, "lean built at once wasn't measured")
	m := growthMedians(runs)
	require.Len(t, m, 2)
	require.Equal(t, allIndexes, m[0].Variant)
	require.InDelta(t, 20, m[0].Worker.Rate, 1e-9)
	require.InDelta(t, 0.2, m[0].Ratio, 1e-9)
	require.InDelta(t, 20./15, m[0].ToDebezium, 1e-9)
	require.Equal(t, []float64{0.2}, m[0].DebeziumRatios)
	require.Equal(t, []float64{20}, m[0].Ratios)
	require.Equal(t, []growthFigure{{Slice: 1, Rows: 5, Rate: 20, WALBytes: 20}}, m[0].Worker.Slices)
	require.InDelta(t, 15, m[0].Debezium.Rate, 1e-9)
	require.Nil(t, m[1].Debezium)
	require.Equal(t, runs[1].Builds, m[1].Builds)

	var out bytes.Buffer
	printGrowth(&out, runs, m)
	require.Regexp(t, `(?m)^full +1 .* 60 +6\.00$`, out.String())
	require.Regexp(t, `(?m)^lean +median .* 80 +-$`, out.String())
	require.Regexp(t, `(?m)^deferred +median +90 +9\.00 +6\.00$`, out.String())
}

func TestCurveMedians(t *testing.T) {
	f := func(n int, spread bool, round int, steady float64) curveFigures {
		return curveFigures{Curve: partitionsCurve, N: n, Spread: spread, figures: figures{Variant: noIndex, Round: round, Worker: rates{Steady: steady}}}
	}
	require.Equal(t, []curveFigures{f(1, false, 0, 2), f(24, false, 0, 7), f(24, true, 0, 5)}, curveMedians([]curveFigures{
		f(1, false, 1, 1), f(1, false, 2, 3), f(24, false, 1, 7), f(24, true, 1, 4), f(24, true, 2, 6),
	}))
}

func TestCharts(t *testing.T) {
	folder := t.TempDir()
	c := chart{name: "c", title: "C", places: []string{"none", "all"}, series: []series{
		line("some", []float64{0, 1}, func(v float64) (float64, float64) { return v, known(v) }),
		line("nothing", []float64{0}, func(v float64) (float64, float64) { return v, known(v) }),
	}}
	for _, c.bars = range []bool{false, true} {
		require.NoError(t, c.write(folder))
		svg, err := os.ReadFile(filepath.Join(folder, "c.svg"))
		require.NoError(t, err)
		require.Contains(t, string(svg), ">some<")
		require.NotContains(t, string(svg), ">nothing<", "it has no point")
		require.NotContains(t, string(svg), "NaN")
	}
	c.name, c.series = "d", c.series[1:]
	require.NoError(t, c.write(folder))
	require.NoFileExists(t, filepath.Join(folder, "d.svg"))

	r := report{Medians: []figures{{Variant: noIndex, Ceiling: rates{Steady: 400}, Worker: rates{Steady: 200}, Ratio: rates{Steady: 0.5}}, {Variant: allIndexes, Ceiling: rates{Steady: 40}, Worker: rates{Steady: 30}, Ratio: rates{Steady: 0.75}}}}
	require.NoError(t, r.keep(filepath.Join(folder, "new"), "throughput"))
	svg, err := os.ReadFile(filepath.Join(folder, "new", "throughput-ratio.svg"))
	require.NoError(t, err)
	for _, text := range []string{"none", "all", "0.50", "0.75", "1.00"} {
		require.Contains(t, string(svg), ">"+text+"<")
	}
	require.FileExists(t, filepath.Join(folder, "new", "throughput.json"))
	require.ErrorContains(t, c2(c).write(filepath.Join(folder, "no")), "write a chart")
	require.ErrorContains(t, redraw([]string{filepath.Join(folder, "no.json")}, folder), "read raw figures")
}

// c2 is a chart that has something to show.
func c2(c chart) chart {
	c.series = []series{line("some", []float64{1, 2}, func(v float64) (float64, float64) { return v, v })}
	return c
}
