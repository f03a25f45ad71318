# For a tap of one's own. VERSION and SHA256 are filled in by `.ci/fill_formula`; each release has the
# filled formula among its files.
class Forty2 < Formula
  desc "Align a language model on your own laptop, and believe the result"
  homepage "https://pypi.org/project/forty2/"
  url "https://files.pythonhosted.org/packages/source/f/forty2/forty2-VERSION.tar.gz"
  sha256 "SHA256"
  license "Apache-2.0"

  depends_on arch: :arm64
  depends_on :macos
  depends_on "python@3.13"

  def install
    # mlx and NumPy come as wheels: their Metal and BLAS builds are the ones that are tested.
    system Formula["python@3.13"].opt_bin/"python3.13", "-m", "venv", libexec
    system libexec/"bin/pip", "install", buildpath
    bin.install_symlink libexec/"bin/forty2"
    generate_completions_from_executable(bin/"forty2", "completion")
  end

  test do
    assert_match "forty2, version #{version}", shell_output("#{bin}/forty2 --version")
    assert_match "demo", shell_output("#{bin}/forty2 recipe list")
  end
end
