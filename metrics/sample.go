package metrics

import (
	"fmt"
	"math"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// Sample is the value of every metric at one moment: what a scrape would have told then, for those who judge by it within this process.
type Sample struct {
	At       time.Time
	families map[string]*dto.MetricFamily
}

// Sample takes one, as of now, which is the caller's clock.
func (m *Metrics) Sample(now time.Time) (Sample, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return Sample{}, fmt.Errorf("gather the metrics: %w", err)
	}
	s := Sample{At: now, families: make(map[string]*dto.MetricFamily, len(families))}
	for _, f := range families {
		s.families[f.GetName()] = f
	}
	return s, nil
}

// Label is a label that a series must have, with its value.
type Label struct{ Name, Value string }

// Sum adds up the series of a counter or gauge that have all these labels. name is without the prefix auditsink_. It is 0 where there is none.
func (s Sample) Sum(name string, labels ...Label) float64 {
	sum := 0.0
	for _, metric := range s.series(name, labels) {
		sum += value(metric)
	}
	return sum
}

// Max is the highest of those series; 0 where there is none.
func (s Sample) Max(name string, labels ...Label) float64 {
	most := math.Inf(-1)
	for _, metric := range s.series(name, labels) {
		most = max(most, value(metric))
	}
	if math.IsInf(most, -1) {
		return 0
	}
	return most
}

// By is each series of a counter or gauge, by its value of one label.
func (s Sample) By(name, label string) map[string]float64 {
	by := map[string]float64{}
	for _, metric := range s.series(name, nil) {
		for _, l := range metric.GetLabel() {
			if l.GetName() == label {
				by[l.GetValue()] += value(metric)
			}
		}
	}
	return by
}

// Process is a metric of the Go runtime or the process, by its whole name, such as process_resident_memory_bytes; 0 where the system doesn't tell.
func (s Sample) Process(name string) float64 {
	sum := 0.0
	for _, metric := range s.families[name].GetMetric() {
		sum += value(metric)
	}
	return sum
}

// Distribution is what a histogram holds.
type Distribution struct {
	Count   uint64
	Sum     float64
	Buckets []Bucket // cumulative, in order
}

// Bucket counts the values up to its bound.
type Bucket struct {
	UpTo  float64
	Count uint64
}

// Distribution adds up the series of a histogram that have all these labels.
func (s Sample) Distribution(name string, labels ...Label) Distribution {
	var all Distribution
	for _, metric := range s.series(name, labels) {
		h := metric.GetHistogram()
		all.Count += h.GetSampleCount()
		all.Sum += h.GetSampleSum()
		for i, b := range h.GetBucket() {
			if math.IsInf(b.GetUpperBound(), 1) {
				continue // in a text alone: Count says the same
			}
			if i == len(all.Buckets) {
				all.Buckets = append(all.Buckets, Bucket{UpTo: b.GetUpperBound()})
			}
			all.Buckets[i].Count += b.GetCumulativeCount()
		}
	}
	return all
}

// Since is what came after an earlier distribution of the same histogram.
func (d Distribution) Since(earlier Distribution) Distribution {
	rest := Distribution{Count: d.Count - earlier.Count, Sum: d.Sum - earlier.Sum, Buckets: slices.Clone(d.Buckets)}
	for i := range min(len(rest.Buckets), len(earlier.Buckets)) {
		rest.Buckets[i].Count -= earlier.Buckets[i].Count
	}
	return rest
}

// Mean is the average value, 0 where there is none.
func (d Distribution) Mean() float64 {
	if d.Count == 0 {
		return 0
	}
	return d.Sum / float64(d.Count)
}

// Quantile is the value below which the share q of the values lie, interpolated within its bucket as PromQL's histogram_quantile does; for values above the
// last bound it is that bound, and 0 where there are none.
func (d Distribution) Quantile(q float64) float64 {
	rank := q * float64(d.Count)
	lower, below := 0.0, 0.0
	for _, b := range d.Buckets {
		if count := float64(b.Count); count >= rank && count > below {
			return lower + (b.UpTo-lower)*(rank-below)/(count-below)
		} else if count > below {
			below = count
		}
		lower = b.UpTo
	}
	if d.Count == 0 {
		return 0
	}
	return lower
}

func (s Sample) series(name string, labels []Label) []*dto.Metric {
	var found []*dto.Metric
	for _, metric := range s.families[namespace+"_"+name].GetMetric() {
		if !slices.ContainsFunc(labels, func(want Label) bool {
			return !slices.ContainsFunc(metric.GetLabel(), func(has *dto.LabelPair) bool { return has.GetName() == want.Name && has.GetValue() == want.Value })
		}) {
			found = append(found, metric)
		}
	}
	return found
}

func value(metric *dto.Metric) float64 {
	return metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + metric.GetUntyped().GetValue()
}
