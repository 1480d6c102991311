package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// keep writes the raw figures and the charts of what was measured to a folder.
func (r *report) keep(folder, name string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // for everybody to read
		return fmt.Errorf("make the folder of the figures: %w", err)
	}
	if err := r.write(filepath.Join(folder, name+".json")); err != nil {
		return err
	}
	return r.chart(folder)
}

// redraw draws the charts of files of raw figures, and prints the report. Those of several runs become one: its rounds are theirs, and it is written to the folder
// under the first one's name.
func redraw(paths []string, folder string) error {
	var all report
	for i, path := range paths {
		if len(paths) > 1 && filepath.Clean(path) == filepath.Join(folder, filepath.Base(paths[0])) {
			return fmt.Errorf("%s would be written over: give another folder by -out", path)
		}
		raw, err := os.ReadFile(path) //nolint:gosec // the command line names the file
		if err != nil {
			return fmt.Errorf("read raw figures: %w", err)
		}
		var r report
		if err := json.Unmarshal(raw, &r); err != nil {
			return fmt.Errorf("read raw figures of %s: %w", path, err)
		}
		r.compare()
		if i == 0 {
			all = r
		} else if err := all.join(r, i+1); err != nil {
			return fmt.Errorf("put the rounds of %s to those of %s: %w", path, paths[0], err)
		}
	}
	if err := all.publish(os.Stdout, ""); err != nil {
		return err
	}
	if len(paths) == 1 {
		return all.chart(folder)
	}
	return all.keep(folder, strings.TrimSuffix(filepath.Base(paths[0]), filepath.Ext(paths[0])))
}

// compare fills in what follows from the rest, and an older program may have left out.
func (r *report) compare() {
	for _, all := range [][]figures{r.Runs, r.Compared} {
		for i := range all {
			if len(all[i].Ceilings) > 0 {
				all[i].compare()
			}
		}
	}
	for i := range r.Curves {
		r.Curves[i].compare()
	}
	for i := range r.Growth {
		r.Growth[i].compare()
	}
}

// join appends the rounds of another run, the n-th, and what its facts say otherwise. Scenarios without rounds stay the first run's.
func (r *report) join(other report, n int) (err error) {
	for _, f := range other.Facts {
		if !slices.Contains(r.Facts, f) {
			r.Facts = append(r.Facts, fact{fmt.Sprintf("%s (%d)", f.Name, n), f.Value})
		}
	}
	throughput := func(f *figures) (string, string, *int) {
		return f.Variant, fmt.Sprint(f.Events, len(f.Ceilings), f.Debezium != nil), &f.Round
	}
	if r.Runs, err = joinRounds(r.Runs, other.Runs, throughput); err != nil {
		return err
	}
	if r.Compared, err = joinRounds(r.Compared, other.Compared, throughput); err != nil {
		return err
	}
	if r.Growth, err = joinRounds(r.Growth, other.Growth, func(f *growthFigures) (string, string, *int) {
		return f.Variant, fmt.Sprint(f.Events, f.Slice, len(f.Builds), f.Debezium != nil), &f.Round
	}); err != nil {
		return err
	}
	r.Curves, err = joinRounds(r.Curves, other.Curves, func(f *curveFigures) (string, string, *int) {
		return f.Curve + " " + f.Variant + " " + f.label(), fmt.Sprint(f.Events, len(f.Ceilings)), &f.Round
	})
	return err
}

// joinRounds numbers the rounds of more after those of to, and keeps together what is of the same kind. Those of a kind must have the same shape, or no median can be taken.
func joinRounds[T any](to, more []T, of func(*T) (kind, shape string, round *int)) ([]T, error) {
	place, shapes, last := map[string]int{}, map[string]string{}, 0
	for i := range to {
		_, _, round := of(&to[i])
		last = max(last, *round)
	}
	for i := range more {
		_, _, round := of(&more[i])
		*round += last
	}
	all := slices.Concat(to, more)
	for i := range all {
		kind, shape, _ := of(&all[i])
		if _, known := place[kind]; !known {
			place[kind], shapes[kind] = i, shape
		}
		if shapes[kind] != shape {
			return nil, fmt.Errorf("figures of %s were taken otherwise: %s, not %s", kind, shape, shapes[kind])
		}
	}
	slices.SortStableFunc(all, func(a, b T) int {
		x, _, _ := of(&a)
		y, _, _ := of(&b)
		return cmp.Compare(place[x], place[y])
	})
	return all, nil
}

// chart draws what there are figures of.
func (r *report) chart(folder string) error {
	var errs []error
	for _, c := range slices.Concat(throughputCharts("throughput", r.Medians), throughputCharts("compare", r.ComparedMedians), growthCharts(r.GrowthMedians), curveCharts(r.CurveMedians)) {
		errs = append(errs, c.write(folder))
	}
	return errors.Join(errs...)
}

// contenders are whose rates the charts of throughput show. One that wasn't measured has 0.
var contenders = []struct {
	name   string
	steady func(figures) (rate, ratio float64) // ratio to the ceiling
}{
	{"ceiling", func(f figures) (rate, ratio float64) { return f.Ceiling.Steady, 1 }},
	{"auditsink", func(f figures) (rate, ratio float64) { return f.Worker.Steady, f.Ratio.Steady }},
	{"Debezium", func(f figures) (rate, ratio float64) {
		if f.Debezium == nil {
			return 0, 0
		}
		return f.Debezium.Rates.Steady, f.Debezium.ToCeiling.Steady
	}},
}

// throughputCharts are the rates by variant, and as ratios to the ceiling, of throughput or of a comparison.
func throughputCharts(name string, medians []figures) []chart {
	rate := chart{name: name, title: "Throughput, steady", x: "indexes", y: "rows/s", bars: true}
	ratio := chart{name: name + "-ratio", title: "Throughput, steady, beside the ceiling", x: "indexes", y: "ratio to the ceiling", bars: true}
	for _, f := range medians {
		rate.places = append(rate.places, f.Variant)
	}
	ratio.places = rate.places
	for color, c := range contenders {
		place := -1.0
		rates := line(c.name, medians, func(f figures) (x, y float64) { place++; rate, _ := c.steady(f); return place, known(rate) })
		rates.color = color
		rate.series = append(rate.series, rates)
		place = -1
		ratios := line(c.name, medians, func(f figures) (x, y float64) { place++; _, ratio := c.steady(f); return place, known(ratio) })
		ratios.color = color
		ratio.series = append(ratio.series, ratios)
	}
	return []chart{rate, ratio}
}

// growthCharts show each slice over the rows that are there at its end.
func growthCharts(medians []growthFigures) []chart {
	const x = "rows in the table, millions"
	cost := chart{name: "growth", title: "What a row costs as the table grows", x: x, y: "µs a row"}
	ratio := chart{name: "growth-ratio", title: "The worker beside the ceiling as the table grows", x: x, y: "ratio to the ceiling in the same slice"}
	wal := chart{name: "growth-wal", title: "WAL a row as the table grows", x: x, y: "bytes of WAL a row"}
	size := chart{name: "growth-indexes", title: "Indexes as the table grows", x: x, y: "GB of indexes"}
	for color, f := range medians {
		rows := func(slice growthFigure) float64 { return float64(slice.Slice*f.Slice) / 1e6 }
		sides := []struct {
			name   string
			of     growthSide
			dashed bool
			color  int
		}{{"worker", f.Worker, false, color}, {"ceiling", f.Ceiling, true, color}}
		if f.Debezium != nil {
			sides = append(sides, sides[1])
			sides[2].name, sides[2].of, sides[2].dashed, sides[2].color = "Debezium", *f.Debezium, false, len(medians)
		}
		for _, side := range sides {
			add := func(c *chart, y func(growthFigure) float64) {
				s := line(f.Variant+", "+side.name, side.of.Slices, func(s growthFigure) (float64, float64) { return rows(s), y(s) })
				s.color, s.dashed = side.color, side.dashed
				c.series = append(c.series, s)
			}
			add(&cost, func(s growthFigure) float64 { return s.Micros })
			add(&wal, func(s growthFigure) float64 { return float64(s.WALBytes) / float64(s.Rows) })
			if side.name == "ceiling" {
				continue
			}
			ratios := f.Ratios
			if side.name == "Debezium" {
				ratios = f.DebeziumRatios
			}
			s := line(f.Variant+", "+side.name, side.of.Slices, func(s growthFigure) (float64, float64) { return rows(s), ratios[s.Slice-1] })
			s.color = side.color
			ratio.series = append(ratio.series, s)
		}
		s := line(f.Variant, f.Worker.Slices, func(s growthFigure) (float64, float64) { return rows(s), float64(s.IndexBytes) / 1e9 })
		s.color = color
		size.series = append(size.series, s)
	}
	return []chart{cost, ratio, wal, size}
}

// curveCharts show, for each curve, the rates of each variant by itself, and the ratios of all.
func curveCharts(medians []curveFigures) (all []chart) {
	for _, curve := range []struct{ name, title string }{
		{lanesCurve, "lanes of a topic"}, {workersCurve, "workers on a topic"}, {partitionsCurve, "partitions of the table"},
	} {
		var places []string
		at := map[int]float64{}
		var variants []string
		for _, f := range medians {
			if f.Curve != curve.name {
				continue
			}
			if _, known := at[f.N]; !known {
				at[f.N] = float64(len(places))
				places = append(places, fmt.Sprint(f.N))
			}
			if !slices.Contains(variants, f.Variant) {
				variants = append(variants, f.Variant)
			}
		}
		ratio := chart{name: curve.name + "-ratio", title: "The worker beside the ceiling, by " + curve.title, x: curve.title, y: "ratio to the ceiling", places: places}
		for color, variant := range variants {
			rate := chart{name: curve.name + "-" + variant, title: "Throughput, steady, indexes: " + variant + ", by " + curve.title, x: curve.title, y: "rows/s", places: places}
			for _, spread := range []bool{false, true} {
				points := slices.DeleteFunc(slices.Clone(medians), func(f curveFigures) bool {
					return f.Curve != curve.name || f.Variant != variant || f.Spread != spread && f.N > 1
				})
				if !slices.ContainsFunc(points, func(f curveFigures) bool { return f.Spread == spread }) {
					continue // one partition is the beginning of both lines, where there are both
				}
				kind := ""
				if curve.name == partitionsCurve {
					kind = map[bool]string{false: ", rows in one", true: ", rows in all"}[spread]
				}
				of := func(name string, color int, dashed bool, y func(curveFigures) float64) series {
					s := line(name+kind, points, func(f curveFigures) (float64, float64) { return at[f.N], y(f) })
					s.color, s.dashed = color, dashed
					return s
				}
				pair := map[bool]int{false: 0, true: 1}[spread]
				rate.series = append(rate.series,
					of("worker", pair, false, func(f curveFigures) float64 { return known(f.Worker.Steady) }),
					of("ceiling", pair, true, func(f curveFigures) float64 { return known(f.Ceiling.Steady) }))
				ratio.series = append(ratio.series, of(variant, color, spread, func(f curveFigures) float64 { return known(f.Ratio.Steady) }))
			}
			all = append(all, rate)
		}
		all = append(all, ratio)
	}
	return all
}
