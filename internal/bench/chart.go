package main

import (
	"cmp"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// chart is a drawing of several series over one axis.
type chart struct {
	name, title, x, y string // name is the file's, without its ending
	// places names the values 0, 1, … of the axis x, where they aren't numbers.
	places []string
	bars   bool // a bar for each place, and not a line through points
	series []series
}

// series are the points of one line, or the bars of one kind. Points that aren't finite are left out.
type series struct {
	name   string
	points plotter.XYs
	// color chooses one; dashed is for what another series of that color is held against.
	color  int
	dashed bool
}

// palette are colors that people who see few can tell apart (Okabe and Ito, Color Universal Design, 2008).
var palette = []color.RGBA{
	{0, 114, 178, 255}, {213, 94, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255}, {230, 159, 0, 255}, {86, 180, 233, 255}, {0, 0, 0, 255},
}

// The size of every chart; its right part is the legend's.
const (
	chartWidth  = 24 * vg.Centimeter
	chartHeight = 10 * vg.Centimeter
	legendWidth = 6 * vg.Centimeter
)

// write writes the chart to a folder as SVG. It does nothing where there are no points.
func (c chart) write(folder string) (err error) {
	p, legend := plot.New(), plot.NewLegend()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.Title.Padding, legend.Top, legend.Left = vg.Millimeter*3, true, true
	p.Add(plotter.NewGrid())
	drawn := 0
	for i, s := range c.series {
		s.points = s.finite()
		if len(s.points) == 0 {
			continue
		}
		drawn++
		if c.bars {
			err = s.addBars(p, &legend, i, len(c.series))
		} else {
			err = s.addLine(p, &legend)
		}
		if err != nil {
			return fmt.Errorf("draw %s of chart %s: %w", s.name, c.name, err)
		}
	}
	if drawn == 0 {
		return nil
	}
	p.Y.Min = 0 // what is twice as much is twice as high
	p.Y.Tick.Marker = plainTicks{}
	if c.places != nil {
		p.NominalX(c.places...)
		p.X.Min, p.X.Max = -0.5, float64(len(c.places))-0.5
	}
	canvas := vgsvg.NewWith(vgsvg.UseWH(chartWidth, chartHeight))
	all := draw.New(canvas)
	all.SetColor(color.White)
	all.Fill(all.Path())
	p.Draw(draw.Crop(all, vg.Millimeter, -legendWidth, vg.Millimeter, -vg.Millimeter))
	legend.Draw(draw.Crop(all, chartWidth-legendWidth+3*vg.Millimeter, 0, 0, -vg.Centimeter))
	return create(filepath.Join(folder, c.name+".svg"), canvas)
}

// create writes a new file.
func create(path string, content io.WriterTo) (err error) {
	file, err := os.Create(path) //nolint:gosec // where the command line says
	if err != nil {
		return fmt.Errorf("write a chart: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := content.WriteTo(file); err != nil {
		return fmt.Errorf("write a chart: %w", err)
	}
	return nil
}

func (s series) finite() (points plotter.XYs) {
	for _, p := range s.points {
		if !math.IsNaN(p.Y) && !math.IsInf(p.Y, 0) {
			points = append(points, p)
		}
	}
	return points
}

func (s series) addLine(p *plot.Plot, legend *plot.Legend) error {
	line, points, err := plotter.NewLinePoints(s.points)
	if err != nil {
		return err
	}
	line.Color, points.Color = palette[s.color%len(palette)], palette[s.color%len(palette)]
	line.Width, points.Shape, points.Radius = vg.Points(1.5), draw.CircleGlyph{}, vg.Points(2.5)
	if s.dashed {
		line.Dashes, points.Shape = []vg.Length{vg.Points(4), vg.Points(3)}, draw.RingGlyph{}
	}
	p.Add(line, points)
	legend.Add(s.name, line, points)
	return nil
}

// addBars adds the ith of n kinds of bars, each with its value above it.
func (s series) addBars(p *plot.Plot, legend *plot.Legend, i, n int) error {
	const width = 24
	offset := vg.Points((float64(i) - float64(n-1)/2) * (width + 10))
	labels := plotter.XYLabels{XYs: s.points}
	for _, at := range s.points {
		labels.Labels = append(labels.Labels, strconv.FormatFloat(at.Y, 'f', digits(at.Y), 64))
		bar, err := plotter.NewBarChart(plotter.Values{at.Y}, vg.Points(width))
		if err != nil {
			return err
		}
		bar.XMin, bar.Offset, bar.Color, bar.LineStyle.Width = at.X, offset, palette[s.color%len(palette)], 0
		p.Add(bar)
		if len(labels.Labels) == 1 {
			legend.Add(s.name, bar)
		}
	}
	above, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	above.Offset = vg.Point{X: offset, Y: vg.Points(2)}
	for i := range above.TextStyle {
		above.TextStyle[i].XAlign, above.TextStyle[i].Font.Size = text.XCenter, vg.Points(8)
	}
	p.Add(above)
	return nil
}

// digits is how many digits of a value behind the point say something.
func digits(v float64) int {
	if v >= 100 {
		return 0
	}
	return 2
}

// plainTicks are the usual ones, but for numbers without an exponent.
type plainTicks struct{}

// Ticks implements [plot.Ticker].
func (plainTicks) Ticks(least, most float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(least, most)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = strconv.FormatFloat(ticks[i].Value, 'f', -1, 64)
		}
	}
	return ticks
}

// line makes a series of what has both an x and a y.
func line[T any](name string, of []T, xy func(T) (x, y float64)) series {
	s := series{name: name}
	for _, t := range of {
		x, y := xy(t)
		s.points = append(s.points, plotter.XY{X: x, Y: y})
	}
	return s
}

// known returns NaN in place of zero, which is what isn't known.
func known(v float64) float64 { return cmp.Or(v, math.NaN()) }
