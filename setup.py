"Builds minifast from settings.ini, where name, version, requirements live; lessons travel in the wheel"
from configparser import ConfigParser
from pathlib import Path
from shutil import copy2, rmtree
from setuptools import setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

WHERE = {'nbs': 'lessons', 'nbs/exercises': 'lessons/exercises', 'nbs/solutions': 'solutions'}

class BuildWithLessons(build_py):
    "Copy the notebooks to where `minifast lessons` and `minifast.check` find them"
    def run(self):
        super().run()
        if self.editable_mode: return
        to = Path(self.build_lib)/'minifast'
        for d in ('lessons', 'solutions'): rmtree(to/d, ignore_errors=True)   # of an earlier build
        for src, d in WHERE.items():
            (to/d).mkdir(parents=True)
            for nb in sorted((root/src).glob('*.ipynb')): copy2(nb, to/d/nb.name)

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
      author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0',
      license_files=['LICENSE', 'minifast/data/mnist/NOTICE.md'],
      url=f"https://github.com/{cfg['user']}/{cfg['repo']}",
      long_description=(root/'README.md').read_text(encoding='utf-8') if (root/'README.md').exists() else '',
      long_description_content_type='text/markdown',
      packages=['minifast'], package_data={'minifast': ['data/mnist/*']}, include_package_data=True,
      zip_safe=False,
      python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(),
      extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev', 'docs', 'files')},
      entry_points={'console_scripts': cfg['console_scripts'].split(),
                    'nbdev': ['minifast = minifast._modidx:d']},
      cmdclass={'build_py': BuildWithLessons},
      classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Education',
                   'Programming Language :: Python :: 3',
                   'Topic :: Scientific/Engineering :: Artificial Intelligence'])
